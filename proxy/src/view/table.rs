//! Rows as text.

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cli::Output;

/// Something that can stand as a row of a table.
pub trait Row {
    /// Names of the columns.
    fn header(wide: bool) -> Vec<&'static str>;
    /// The row's cells, as many as the header has.
    fn cells(&self, wide: bool) -> Vec<String>;
}

/// Rows in the form asked for, with a final newline.
///
/// # Errors
///
/// None in practice: rows are plain data, which serde can write.
pub fn render<R: Row + Serialize>(rows: &[R], output: Output) -> anyhow::Result<String> {
    Ok(match output {
        Output::Table | Output::Wide => {
            let wide = output == Output::Wide;
            let mut table = plain_table();
            table.set_header(R::header(wide));
            for row in rows {
                table.add_row(row.cells(wide));
            }
            finish(table)
        }
        Output::Json => serde_json::to_string_pretty(rows)? + "\n",
        Output::Yaml => serde_norway::to_string(rows)?,
    })
}

/// A table with no lines: columns apart by two spaces, as kubectl prints.
pub(crate) fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// The table's text without spaces at line ends.
pub(crate) fn finish(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
