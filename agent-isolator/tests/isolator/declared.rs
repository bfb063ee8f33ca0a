//! What a container declares beside labels and variables.

use agent_isolator::mesos::container_config::ContainerClass;
use agent_isolator::mesos::volume::source::{DockerVolume, HostPath, Type};
use agent_isolator::mesos::volume::{Mode, Source};
use agent_isolator::mesos::{ContainerConfig, ContainerInfo, Volume};

use crate::agent::{Agent, config, id};

fn declaring(mut config: ContainerConfig, driver: &str) -> ContainerConfig {
    let docker_volume =
        Some(DockerVolume { driver: Some(driver.into()), name: b"vol-1".to_vec(), driver_options: None });
    let source = Source { r#type: Some(Type::DockerVolume.into()), docker_volume, ..Default::default() };
    let (container_path, mode) = (b"data".to_vec(), Some(Mode::Rw.into()));
    let volume = Volume { container_path, mode, source: Some(source), ..Default::default() };
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
    let kinds = [
        ("task", config(&[], &[])),
        ("task.debug", debug.clone()),
        ("alone", standalone),
        ("labelled", labelled),
    ];
    for (name, config) in &kinds {
        let refused = agent.prepare(&id(name), &declaring(config.clone(), "pxd")).answer().unwrap_err();
        assert!(
            refused.starts_with("DOCKER_VOLUME pxd/vol-1 is not mounted: nobody on"),
            "{name}: {refused}"
        );
    }
    let refused = agent.prepare(&id("task.debug"), &declaring(debug, "rexray")).answer().unwrap_err();
    assert!(refused.contains("a debug container sees the volumes of its parent"), "{refused}");
    let lax = Agent::start(&[("docker_volumes", "ignore")]);
    assert_eq!(lax.prepare(&id("task"), &declaring(config(&[], &[]), "rexray")).answer(), Ok(None));
}

/// The link is followed as Mesos's mount would follow it, on a thread that Mesos does not wait for.
#[test]
fn no_container_of_any_kind_shows_a_leased_volume_by_a_link() {
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name);
    std::fs::create_dir_all(at("roots/db/data")).unwrap();
    std::fs::create_dir(at("good")).unwrap();
    std::os::unix::fs::symlink(at("roots/db/data"), at("link")).unwrap();
    let agent = Agent::start(&[("mount_roots", at("roots").to_str().unwrap())]);
    let showing = |mut config: ContainerConfig, name: &str| {
        let host_path =
            Some(HostPath { path: at(name).into_os_string().into_encoded_bytes(), ..Default::default() });
        let source = Source { r#type: Some(Type::HostPath.into()), host_path, ..Default::default() };
        let volume = Volume { container_path: b"data".to_vec(), source: Some(source), ..Default::default() };
        config.container_info = Some(ContainerInfo { r#type: None, volumes: vec![volume] });
        config
    };
    let labelled = config(&[("extvol.name", "vol-1")], &[]);
    let kinds = [("task", config(&[], &[])), ("alone", ContainerConfig::default()), ("labelled", labelled)];
    for (name, config) in kinds {
        let refused = agent.prepare(&id(name), &showing(config, "link")).answer().unwrap_err();
        assert!(
            refused.starts_with("host path ") && refused.contains("mounted under leases"),
            "{name}: {refused}"
        );
    }
    assert_eq!(agent.prepare(&id("good"), &showing(config(&[], &[]), "good")).answer(), Ok(None));
}
