//! A framework's own executor of several tasks, for tests.

fn main() {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let kind = integration::executor::Kind::Custom;
    std::process::exit(integration::executor::main_of_several(kind, &arguments, environment));
}
