//! Medians, ratios, the table for people and the JSON for programs.

use std::fs;

use serde_json::{Value, json};

/// What one variant achieved in one case: a figure for each round.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) bench: &'static str,
    pub(crate) case: &'static str,
    pub(crate) variant: String,
    /// Services that are installed, in the bench policy policies; 0 where there are none.
    pub(crate) n: usize,
    pub(crate) unit: &'static str,
    pub(crate) rounds: Vec<f64>,
}

/// The middle value, or the mean of the two; NaN of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The median of the ratios within each round, which cancels what slows a whole round down.
pub(crate) fn ratio(of: &Measured, to: &Measured) -> f64 {
    let ratios: Vec<f64> = of.rounds.iter().zip(&to.rounds).map(|(of, to)| of / to).collect();
    median(&ratios)
}

/// The results of a run for the JSON file: medians alone.
pub(crate) fn json(measured: &[Measured]) -> Vec<Value> {
    measured
        .iter()
        .map(|it| {
            // Rates are in thousands, streams in gigabits, and changes take a few milliseconds.
            let steps = if matches!(it.unit, "Gbit/s" | "ms") { 100.0 } else { 10.0 };
            let value = (median(&it.rounds) * steps).round() / steps;
            json!({
                "bench": it.bench,
                "case": it.case,
                "variant": it.variant,
                "n": it.n,
                "value": value,
                "unit": it.unit,
            })
        })
        .collect()
}

/// A table without lines.
pub(crate) fn bare() -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table
}

/// Prints the table.
pub(crate) fn print(measured: &[Measured]) {
    let mut table = bare();
    table.set_header([
        "case",
        "variant",
        "services",
        "1/s",
        "lowest",
        "highest",
        "x direct",
        "x nftables",
        "x fewest",
    ]);
    let find = |case: &str, variant: &str, n: usize| {
        measured.iter().find(|it| it.case == case && it.variant == variant && it.n == n)
    };
    // What more services cost: the same variant with the fewest of them.
    let fewest = |of: &Measured| {
        measured
            .iter()
            .filter(|it| it.case == of.case && it.variant == of.variant && it.n > 0 && it.n < of.n)
            .min_by_key(|it| it.n)
    };
    let times = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    for it in measured {
        let direct = find(it.case, "direct", 0).map(|direct| ratio(it, direct));
        let nftables = find(it.case, "nftables", it.n).map(|nftables| ratio(it, nftables));
        let figure = |value: f64| thousands(value);
        table.add_row([
            it.case.to_owned(),
            it.variant.clone(),
            if it.n == 0 { String::new() } else { it.n.to_string() },
            figure(median(&it.rounds)),
            figure(it.rounds.iter().copied().fold(f64::INFINITY, f64::min)),
            figure(it.rounds.iter().copied().fold(0.0, f64::max)),
            times(direct),
            times(nftables),
            times(fewest(it).map(|few| ratio(it, few))),
        ]);
    }
    for column in 2..9 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    println!("\n{table}");
    println!("\nmedians over the rounds; ratios are medians of the ratios within each round");
    println!("x fewest: to the same variant with the fewest services");
    println!("NAME-pod: to the pod's own address, on the node with the most services");
}

/// `41500.0` as `41,500`.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 && digit.is_ascii_digit() {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Kernel and processor, on one line.
pub(crate) fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            line.strip_prefix(name)?.split_once(':').map(|(_, value)| value.trim())
        })
    };
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    format!(
        "kernel {}, {} x {}, BPF JIT {}",
        kernel.trim(),
        cpus,
        field("model name").or_else(|| field("CPU part")).unwrap_or("unknown processor"),
        if jit.trim() == "0" { "off" } else { "on" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(variant: &str, rounds: &[f64]) -> Measured {
        let (bench, case) = ("service", "tcp-crr");
        Measured {
            bench,
            case,
            variant: variant.to_owned(),
            n: 10,
            unit: "1/s",
            rounds: rounds.to_vec(),
        }
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median(&[4.0, 1.0]).to_bits(), 2.5_f64.to_bits());
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        // A slow machine in the second round slows both alike.
        let (ours, theirs) = (measured("a", &[20.0, 2.0, 20.0]), measured("b", &[10.0, 1.0, 16.0]));
        assert_eq!(ratio(&ours, &theirs).to_bits(), 2.0_f64.to_bits());
    }

    #[test]
    fn the_json_has_the_documented_shape() {
        let value = json(&[measured("sluice", &[41_500.04])]);
        let expected = json!({
            "bench": "service", "case": "tcp-crr", "variant": "sluice", "n": 10, "value": 41500.0, "unit": "1/s"
        });
        assert_eq!(value, [expected]);
    }

    #[test]
    fn figures_have_thousands_marked() {
        assert_eq!(thousands(41_500.4), "41,500");
        assert_eq!(thousands(999.0), "999");
        assert_eq!(thousands(1_234_567.0), "1,234,567");
    }
}
