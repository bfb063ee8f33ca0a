//! What a benchmark says of its samples: a line for people, and a file for programs.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Samples below which the 99th percentile would be the maximum by another name.
const SAMPLES_OF_P99: usize = 100;

/// What a measure should not exceed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The median should not.
    Median(f64),
    /// p99 should not; below a hundred samples, none should.
    Worst(f64),
}

/// What was measured, summed up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was measured; also the file's name.
    pub name: String,
    /// In which unit.
    pub unit: String,
    /// How often.
    pub samples: usize,
    /// Half of the samples are no greater.
    pub p50: f64,
    /// 99 of 100 are no greater; not given below a hundred samples.
    pub p99: Option<f64>,
    /// The greatest.
    pub max: f64,
    /// What it should not exceed.
    pub goal: Option<f64>,
    /// What of it should not: `p50`, or `worst`, which is p99, or without it the greatest.
    pub goal_of: Option<&'static str>,
    /// Whether it does not; nothing without a goal.
    pub met: Option<bool>,
}

impl Report {
    /// Sums up samples; nothing comes of none.
    #[must_use]
    pub fn new(name: &str, unit: &str, mut samples: Vec<f64>, goal: Option<Goal>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let max = *samples.last()?;
        // The smallest sample that so many of a hundred do not exceed.
        let percentile = |of_hundred: usize| samples[(samples.len() * of_hundred).div_ceil(100) - 1];
        let p99 = (samples.len() >= SAMPLES_OF_P99).then(|| percentile(99));
        let p50 = percentile(50);
        let (goal, goal_of, reached) = match goal {
            None => (None, None, None),
            Some(Goal::Median(goal)) => (Some(goal), Some("p50"), Some(p50)),
            Some(Goal::Worst(goal)) => (Some(goal), Some("worst"), Some(p99.unwrap_or(max))),
        };
        Some(Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            samples: samples.len(),
            p50,
            p99,
            max,
            goal,
            goal_of,
            met: goal.zip(reached).map(|(goal, reached)| reached <= goal),
        })
    }

    /// The head of a table of reports.
    #[must_use]
    pub fn head() -> String {
        let [name, samples, p50, p99, max, goal] = ["", "samples", "p50", "p99", "max", "goal"];
        format!("{name:<44} {samples:>7} {p50:>10} {p99:>10} {max:>10} {goal:>10}")
    }

    /// Writes the report below `directory`, which is made; answers the file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, directory: &Path) -> io::Result<PathBuf> {
        std::fs::create_dir_all(directory)?;
        let file = directory.join(format!("{}.json", self.name));
        std::fs::write(&file, serde_json::to_vec_pretty(self)?)?;
        Ok(file)
    }
}

/// One line of the table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        let name = format!("{} ({})", self.name, self.unit);
        let (p50, p99, max) = (number(Some(self.p50)), number(self.p99), number(Some(self.max)));
        let goal = number(self.goal);
        write!(f, "{name:<44} {:>7} {p50:>10} {p99:>10} {max:>10} {goal:>10}", self.samples)?;
        match (self.met, self.goal_of) {
            (Some(met), Some(of)) => write!(f, "  {} by {of}", if met { "met" } else { "MISSED" }),
            _ => Ok(()),
        }
    }
}

/// Where reports go: `target/bench` of this workspace.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_up_and_a_goal_is_met_by_p99_or_the_greatest() {
        let samples = |n: u32| (1..=n).rev().map(f64::from).collect::<Vec<_>>();
        let of = |n, goal| Report::new("x", "s", samples(n), goal).unwrap();
        let median = of(200, Some(Goal::Median(99.0)));
        assert_eq!((median.goal_of, median.met), (Some("p50"), Some(false)));
        let many = of(200, Some(Goal::Worst(198.0)));
        assert_eq!((many.p50, many.p99, many.max, many.met), (100.0, Some(198.0), 200.0, Some(true)));
        let few = of(99, Some(Goal::Worst(98.0)));
        assert_eq!((few.p50, few.p99, few.max, few.met), (50.0, None, 99.0, Some(false)));
        let one = of(1, None);
        assert_eq!((one.p50, one.max, one.met), (1.0, 1.0, None));
        assert_eq!(Report::new("x", "s", Vec::new(), None), None);
    }

    #[test]
    fn a_report_is_a_file_with_a_null_for_what_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let report = Report::new("master-cpu", "core-seconds", vec![0.5], Some(Goal::Worst(1.0))).unwrap();
        let file = report.write(&directory.path().join("bench")).unwrap();
        assert!(file.ends_with("bench/master-cpu.json"));
        let value: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!((&value["p99"], &value["met"]), (&serde_json::Value::Null, &true.into()));
        assert!(report.to_string().ends_with("met by worst"));
    }
}
