//! The command executor that a Mesos agent launches as `mesos-executor` from its launcher directory.

fn main() {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    std::process::exit(integration::executor::main(std::env::args_os().skip(1).collect(), environment));
}
