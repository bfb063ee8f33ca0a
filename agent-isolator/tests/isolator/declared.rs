//! What a container declares beside labels and variables.

use agent_isolator::mesos::container_config::ContainerClass;
use agent_isolator::mesos::volume::Source;
use agent_isolator::mesos::volume::source::{DockerVolume, Type};
use agent_isolator::mesos::{ContainerConfig, ContainerInfo, Volume};

use crate::agent::{Agent, config, id};

fn declaring(mut config: ContainerConfig, driver: &str) -> ContainerConfig {
    let docker_volume = Some(DockerVolume { driver: Some(driver.into()), name: b"vol-1".to_vec() });
    let source = Source { r#type: Some(Type::DockerVolume.into()), docker_volume, host_path: None };
    let volume = Volume { container_path: b"data".to_vec(), host_path: None, source: Some(source) };
    config.container_info = Some(ContainerInfo { r#type: None, volumes: vec![volume] });
    config
}

#[test]
fn no_container_of_any_kind_starts_without_the_docker_volume_that_it_declares() {
    let agent = Agent::start(&[]);
    let mut debug = config(&[], &[]);
    debug.container_class = Some(ContainerClass::Debug.into());
    let standalone = ContainerConfig::default();
    let labelled = config(&[("extvol.name", "vol-1")], &[]);
    let kinds =
        [("task", config(&[], &[])), ("task.debug", debug), ("alone", standalone), ("labelled", labelled)];
    for (name, config) in kinds {
        for (driver, expected) in
            [("rexray", "volumes of the driver rexray are leased"), ("pxd", "nobody on")]
        {
            let refused = agent.prepare(&id(name), &declaring(config.clone(), driver)).answer().unwrap_err();
            let named = format!("DOCKER_VOLUME {driver}/vol-1 is not mounted: ");
            assert!(refused.starts_with(&named) && refused.contains(expected), "{name}: {refused}");
        }
    }
    let lax = Agent::start(&[("docker_volumes", "ignore")]);
    assert_eq!(lax.prepare(&id("task"), &declaring(config(&[], &[]), "rexray")).answer(), Ok(None));
}
