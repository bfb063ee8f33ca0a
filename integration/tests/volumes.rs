//! The product on real Mesos, etcd and file systems.

use std::time::{Duration, Instant};

use integration::cluster::{Cluster, ClusterConfig};
use integration::scheduler::{App, Scheduler, SchedulerConfig};

#[test]
fn mesos_probe() {
    let mut config = ClusterConfig::plain(2).unwrap();
    config.add_storage(&["ebs"]).unwrap();
    let keeper = config.binaries.keeper.clone().unwrap().display().to_string();
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    config
        .load_modules(
            pairs(&[("etcd_endpoints", "{etcd}"), ("poll_interval", "1secs")]),
            pairs(&[("etcd_endpoints", "{etcd}"), ("keeper", &keeper)]),
        )
        .unwrap();
    let cluster = Cluster::start(config).unwrap();
    println!("{}", cluster.directory().display());
    cluster.wait_agents_registered().unwrap();
    println!(
        "{}",
        cluster.hub().run(&["curl", "-sS", "-X", "POST", "http://192.0.2.1:7000/volumes/vol-1"]).unwrap()
    );
    let scheduler = Scheduler::start(&cluster.master_url(), SchedulerConfig::default()).unwrap();
    let app = App::from_json(r#"{"id":"w","cmd":"ls -la; df data; while true; do date >> data/log; sleep 0.1; done",
      "labels":{"extvol.name":"vol-1","extvol.driver":"ebs","extvol.container_path":"data"},"constraints":{"hostnames":["agent-1"]}}"#).unwrap();
    scheduler.run(app).unwrap();
    let r = scheduler.wait_until_running("w", Instant::now() + Duration::from_secs(20));
    println!("{r:?}");
    println!("{}", cluster.etcdctl(&["get", "--prefix", "/extvol"]).unwrap());
    println!("{}", cluster.host(0).run(&["cat", "/run/extvol/keeper.log"]).unwrap());
    println!("{}", cluster.log_tails(30));
    scheduler.stop("w").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    println!("{}", cluster.etcdctl(&["get", "--prefix", "/extvol"]).unwrap());
    println!("{}", cluster.host(0).run(&["cat", "/run/extvol/keeper.log"]).unwrap());
    panic!();
}
