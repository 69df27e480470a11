//! `metav1.Time`.

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// An instant: RFC 3339 in JSON, seconds and nanoseconds in protobuf.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Time {
    /// Seconds since 1970.
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: Timestamp = text
            .parse()
            .map_err(|_| D::Error::custom(format_args!("{text:?} is not an RFC 3339 time")))?;
        Ok(Self { seconds: time.as_second(), nanos: time.subsec_nanosecond() })
    }
}
