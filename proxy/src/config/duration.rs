//! Durations as kube-proxy's flags and files have them.

/// The text is no duration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is neither a number of seconds nor a duration such as 24h0m0s")]
pub struct DurationError(String);

/// Whole seconds from a number of seconds (`86400`) or a duration in Go's notation (`24h`, `1h0m30s`,
/// `1.5s`, `900ms`), rounded up so that what is not 0 does not become so.
///
/// # Errors
///
/// Anything else, and what is negative or beyond `u64`.
pub fn seconds(text: &str) -> Result<u64, DurationError> {
    let error = || DurationError(text.to_owned());
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    if text.is_empty() {
        return Err(error());
    }
    let mut rest = text;
    let mut nanos: f64 = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let number: f64 = rest[..digits].parse().map_err(|_| error())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3.6e12,
            "m" => 6e10,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" | "μs" => 1e3,
            "ns" => 1.0,
            _ => return Err(error()),
        };
        nanos += number * unit;
        rest = &rest[end..];
    }
    let seconds = (nanos / 1e9).ceil();
    // Far beyond what any time-out can be, and exact below.
    if seconds < 9e15 { Ok(seconds as u64) } else { Err(error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_go_durations_are_understood() {
        for (text, expected) in [
            ("0", 0),
            ("86400", 86_400),
            ("24h0m0s", 86_400),
            ("1h30m", 5_400),
            ("1.5s", 2),
            ("900ms", 1),
            ("0s", 0),
            ("2m0.5s", 121),
        ] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for text in ["", "h", "1", "5x", "-1s", "1h 2m", "1e30h", "s5", "1..5s"] {
            assert_eq!(seconds(text).is_ok(), text == "1", "{text}");
        }
    }
}
