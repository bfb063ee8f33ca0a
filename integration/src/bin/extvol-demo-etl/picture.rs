//! The picture of a run: rows per second by host, with what happened, and below it who had the target.

use std::fmt::Write as _;

use integration::etl::{Outcome, grouped};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 330.0;
/// Where the bars are.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 840.0;
const TOP: f64 = 120.0;
const BOTTOM: f64 = 260.0;
/// One for each host, in the order of their loading.
const COLOURS: [&str; 2] = ["#2f6f9f", "#c2681c"];

/// Draws it.
pub(crate) fn svg(outcome: &Outcome) -> String {
    let seconds = &outcome.throughput.seconds;
    // A bar is of one second: the axis ends at a whole one.
    let end = outcome.throughput.took.floor() + 1.0;
    let most = seconds.iter().map(|second| second.rows).max().unwrap_or(0).max(1);
    let x = |at: f64| LEFT + (RIGHT - LEFT) * at / end;
    let height = |rows: u64| (BOTTOM - TOP) * rows as f64 / (most as f64 * 1.05);
    let colour = |host: &str| {
        let index = outcome.hosts.iter().position(|of| of == host).unwrap_or(0);
        COLOURS[index % COLOURS.len()]
    };
    let mut svg = String::new();
    let _infallible = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut text = |at: (f64, f64), anchor: &str, colour: &str, text: &str| {
        let (x, y) = at;
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _infallible = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>"
        );
    };
    text((LEFT, 20.0), "start", "#222", &title(outcome));
    let mut rows = 0;
    while rows <= most {
        text((LEFT - 8.0, BOTTOM - height(rows) + 4.0), "end", "#555", &grouped(rows));
        rows += round_step(most);
    }
    text((LEFT - 8.0, TOP - 14.0), "end", "#555", "rows/s");
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 60.0].into_iter().find(|step| end / step <= 12.0).unwrap_or(300.0);
    let ticks = std::iter::successors(Some(0.0), |at| Some(at + step)).take_while(|at| *at <= end);
    for at in ticks.clone() {
        text((x(at), BOTTOM + 16.0), "middle", "#555", &format!("{at} s"));
    }
    // What comes after the load is not the job's.
    let marks = outcome.marks.iter().filter(|mark| mark.at <= end).enumerate();
    for (index, mark) in marks.clone() {
        let anchor = if x(mark.at) > (LEFT + RIGHT) / 2.0 { "end" } else { "start" };
        let side = if anchor == "end" { -4.0 } else { 4.0 };
        let at = (x(mark.at) + side, mark_top(index) + 4.0);
        text(at, anchor, "#a11", &format!("{} at {:.1} s", mark.what, mark.at));
    }
    for (index, host) in outcome.hosts.iter().enumerate() {
        let of = seconds.iter().filter(|second| second.host == *host);
        let first = of.clone().map(|second| second.at).min().unwrap_or(0);
        let name = format!("{host} loads");
        let near_end = x(first as f64) > RIGHT - 90.0;
        let (at, anchor) = if near_end { (RIGHT, "end") } else { (x(first as f64), "start") };
        text((at, BOTTOM + 50.0), anchor, COLOURS[index % COLOURS.len()], &name);
    }
    for second in seconds {
        let (at, high) = (second.at as f64, height(second.rows));
        let wide = x(at + 1.0) - x(at);
        let (left, colour) = (x(at), colour(&second.host));
        let _infallible = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{high:.1}\" fill=\"{colour}\"/>\n\
             <rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{wide:.1}\" height=\"8\" fill=\"{colour}\"/>",
            BOTTOM - high,
            wide * 0.9,
            BOTTOM + 26.0
        );
    }
    for (index, mark) in marks {
        line(&mut svg, (x(mark.at), mark_top(index)), (x(mark.at), BOTTOM + 36.0), "#a11");
    }
    line(&mut svg, (LEFT, BOTTOM), (RIGHT, BOTTOM), "#555");
    line(&mut svg, (LEFT, TOP), (LEFT, BOTTOM), "#555");
    for at in ticks {
        line(&mut svg, (x(at), BOTTOM), (x(at), BOTTOM + 4.0), "#555");
    }
    svg.push_str("</svg>\n");
    svg
}

/// Of the axis of rows: a round number of which at most five are below `most`.
fn round_step(most: u64) -> u64 {
    let tens = std::iter::successors(Some(1_u64), |ten| ten.checked_mul(10));
    let steps = tens.flat_map(|ten| [1, 2, 5].map(|of| ten.saturating_mul(of)));
    steps.into_iter().find(|step| most / step <= 5).unwrap_or(u64::MAX)
}

fn title(outcome: &Outcome) -> String {
    let throughput = &outcome.throughput;
    format!(
        "{} orders from PostgreSQL into a database on an external volume; longest pause {:.1} s",
        grouped(outcome.good + outcome.bad),
        throughput.pause.seconds
    )
}

/// One below the other, so that their texts do not meet.
fn mark_top(index: usize) -> f64 {
    let row = u32::try_from(index.min(3)).unwrap_or(0);
    40.0 + 18.0 * f64::from(row)
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let _infallible = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
        from.0, from.1, to.0, to.1
    );
}

#[cfg(test)]
mod tests {
    use integration::etl::throughput::{Pause, Second, Throughput};
    use integration::etl::{Fault, Mark, Settings};

    use super::*;

    #[test]
    fn the_axis_has_round_steps() {
        assert_eq!([1, 5, 6, 25_000, 26_000, 60_000].map(round_step), [1, 1, 2, 5_000, 5_000, 20_000]);
    }

    #[test]
    fn each_second_is_a_bar_and_what_comes_after_the_load_is_left_out() {
        let second = |at, host: &str| Second { at, host: host.into(), rows: 10 };
        let mark = |at, what: &str| Mark { at, what: what.into() };
        let picture = svg(&Outcome {
            settings: Settings { fault: Fault::Host, percent: 50, rows: 20, seed: 1, rows_per_second: None },
            good: 19,
            bad: 1,
            hosts: vec!["a".into(), "b".into()],
            throughput: Throughput {
                took: 4.5,
                pause: Pause { at: 0.5, seconds: 4.0, from: "a".into(), to: "b".into() },
                before: 10,
                after: 10,
                seconds: vec![second(0, "a"), second(4, "b")],
            },
            marks: vec![mark(0.6, "a < b"), mark(9.0, "too late")],
        });
        assert_eq!((picture.matches(COLOURS[0]).count(), picture.matches(COLOURS[1]).count()), (3, 3));
        assert!(picture.contains("a &lt; b at 0.6 s") && !picture.contains("too late"), "{picture}");
    }
}
