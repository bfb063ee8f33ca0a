//! The executor of task groups that a Mesos agent launches as `mesos-default-executor` from its launcher directory.

fn main() {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let kind = integration::executor::Kind::Default;
    std::process::exit(integration::executor::main_of_several(kind, &arguments, environment));
}
