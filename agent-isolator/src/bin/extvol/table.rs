//! Tables for people: columns as wide as they need, two spaces between them. What no terminal shows in a line is cut,
//! and says so; `-o json` has all of it.

use std::io::{self, Write};

use shared::quote;

/// The most characters of a cell. A table pads every row to its widest cell.
const CELL_CHARS_MAX: usize = 160;

/// Of the last column, which nothing is padded to: a sentence and its causes.
const LAST_CHARS_MAX: usize = 4096;

/// Of a list in a cell, so many are named.
const LISTED_MAX: usize = 8;

/// Prints rows below their heads. The last column is not padded.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn print<const N: usize>(
    out: &mut dyn Write,
    heads: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let rows: Vec<_> = rows.iter().map(shown_row).collect();
    let mut widths = heads.map(|head| head.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: &[String; N]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            text.push_str(cell);
            // Not by the width of a format, which has a largest one.
            text.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 2));
        }
        writeln!(out, "{}", text.trim_end())
    };
    line(&heads.map(str::to_owned))?;
    rows.iter().try_for_each(line)
}

/// The first of many, and how many more there are.
pub(crate) fn listed(items: &[String]) -> String {
    let named = items.iter().take(LISTED_MAX).map(String::as_str).collect::<Vec<_>>().join(",");
    match items.len().saturating_sub(LISTED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn shown_row<const N: usize>(cells: &[String; N]) -> [String; N] {
    let mut column = 0;
    cells.each_ref().map(|cell| {
        column += 1;
        shown(cell, if column == N { LAST_CHARS_MAX } else { CELL_CHARS_MAX })
    })
}

/// An empty cell would shift what follows it for those who cut a table apart; and texts come from records,
/// which must not move a terminal's cursor.
fn shown(cell: &str, chars_max: usize) -> String {
    match cell {
        "" => "-".to_owned(),
        _ => quote::cut(&quote::line(cell), chars_max).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
        let mut out = Vec::new();
        print(&mut out, heads, rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_no_cell_is_empty_or_breaks_the_line() {
        let rows = [
            ["a".to_owned(), String::new(), "x\u{1b}[2Jy\nz".to_owned()],
            ["longer".to_owned(), "ü".to_owned(), String::new()],
        ];
        let expected = "ONE     TWO  THREE\na       -    x\\u{1b}[2Jy\\nz\nlonger  ü    -\n";
        assert_eq!(printed(["ONE", "TWO", "THREE"], &rows), expected);
    }

    #[test]
    fn a_cell_of_any_length_is_printed_and_says_what_is_missing() {
        let long = "ü".repeat(200_000);
        let rows = [[long.clone(), long.clone()], ["a".to_owned(), "b".to_owned()]];
        let text = printed(["ONE", "TWO"], &rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("... (199840 characters more)  ü"), "{}", lines[1]);
        assert!(lines[1].ends_with("... (195904 characters more)"), "{}", lines[1]);
        assert!(lines[2].chars().count() < 200, "{}", lines[2]);
        let many: Vec<_> = (0..2_000).map(|n| format!("c{n}")).collect();
        assert_eq!(listed(&many), "c0,c1,c2,c3,c4,c5,c6,c7 and 1992 more");
        assert_eq!(listed(&many[..2]), "c0,c1");
    }

    #[test]
    fn whatever_the_cells_hold_a_table_has_a_line_for_each_row() {
        // Chance with a fixed seed, over characters that matter.
        let odd = [
            'a',
            ' ',
            '\n',
            '\r',
            '\t',
            '\u{0}',
            '\u{1b}',
            '\u{9b}',
            '\u{202e}',
            '\u{feff}',
            '界',
            '\u{10ffff}',
        ];
        let mut seed = 1_u64;
        let mut next = move |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap() % below
        };
        for _ in 0..300 {
            let mut cell = || (0..next(400)).map(|_| odd[next(odd.len())]).collect::<String>();
            let rows: Vec<_> = (0..5).map(|_| [cell(), cell(), cell()]).collect();
            let text = printed(["A", "B", "C"], &rows);
            assert_eq!(text.lines().count(), 6, "{text:?}");
            assert!(text.lines().all(|line| quote::line(line) == line), "{text:?}");
        }
    }
}
