//! Tables for people: columns as wide as they need, two spaces between them, nothing cut off.

use std::io::{self, Write};

/// Prints rows below their heads. The last column is not padded.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn print<const N: usize>(
    out: &mut dyn Write,
    heads: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let mut widths = heads.map(|head| head.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(shown(cell).chars().count());
        }
    }
    let mut line = |cells: &[String; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{:<width$}", shown(cell)));
        writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    line(&heads.map(str::to_owned))?;
    rows.iter().try_for_each(line)
}

/// An empty cell would shift what follows it for those who cut a table apart; and texts come from records,
/// which must not move a terminal's cursor.
fn shown(cell: &str) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_no_cell_is_empty_or_breaks_the_line() {
        let rows = [
            ["a".to_owned(), String::new(), "x\u{1b}[2Jy\nz".to_owned()],
            ["longer".to_owned(), "ü".to_owned(), String::new()],
        ];
        let mut out = Vec::new();
        print(&mut out, ["ONE", "TWO", "THREE"], &rows).unwrap();
        let expected = "ONE     TWO  THREE\na       -    x [2Jy z\nlonger  ü    -\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
