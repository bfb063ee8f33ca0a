//! Runs a plan, as extvol-simulate prints it for a failing seed, through the cores once more, and prints every
//! event: `extvol-replay FILE`, or `-` for standard input.

use std::io::Read as _;
use std::process::ExitCode;

use integration::simulation::plan::Plan;
use integration::simulation::run::run;

fn main() -> ExitCode {
    let plan = match read() {
        Ok(plan) => plan,
        Err(why) => {
            eprintln!("extvol-replay: {why}");
            return ExitCode::from(2);
        }
    };
    let report = run(&plan, true);
    for line in &report.log {
        println!("{line}");
    }
    match report.violation {
        None => {
            println!("nothing went wrong in {} events", report.events);
            ExitCode::SUCCESS
        }
        Some((_, violation)) => {
            println!("{violation:?}");
            ExitCode::FAILURE
        }
    }
}

/// The plan that the argument names.
fn read() -> Result<Plan, String> {
    let name = std::env::args().nth(1).ok_or("usage: extvol-replay FILE, or - for standard input")?;
    let text = if name == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(&name)
    };
    let text = text.map_err(|error| format!("{name} cannot be read: {error}"))?;
    let plan: Plan = serde_json::from_str(&text).map_err(|error| format!("{name} is not a plan: {error}"))?;
    plan.check()?;
    Ok(plan)
}
