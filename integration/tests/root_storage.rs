//! The storage stand-in on real loop devices and real ext4. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

#[path = "root_storage/world.rs"]
mod world;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration::storage::control::Created;
use integration::storage::control::http::RefusalKind;
use integration::storage::journal::{self, Event};
use integration::storage::loop_device::{Binding, LoopDevice, is_idle};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde_json::{Value, json};
use world::{Page, World, eventually, is_bound, is_sound, mount_ext4, open_with, unmount};

const NOT_FOUND: &str = "failed: resource not found";

fn refused<T: std::fmt::Debug>(
    outcome: Result<T, integration::storage::control::client::ClientError>,
) -> RefusalKind {
    outcome.unwrap_err().kind().unwrap()
}

#[tokio::test]
async fn a_volume_is_attached_to_one_host_at_a_time() {
    let world = World::start().await;
    let control = &world.control;
    assert_eq!(control.create("vol1", None).await.unwrap(), Created::New);
    assert_eq!(control.create("VOL1", None).await.unwrap(), Created::AlreadyThere);

    let first = control.attach("vol1", "host-a").await.unwrap();
    assert_eq!(control.attach("Vol1", "host-a").await.unwrap(), first, "the same host gets the same answer");
    let refusal = control.attach("vol1", "host-b").await.unwrap_err();
    assert!(refusal.to_string().contains("attached to host host-a"), "{refusal}");
    assert_eq!(refusal.kind(), Some(RefusalKind::AttachedElsewhere));
    assert_eq!(refused(control.detach("vol1", Some("host-b")).await), RefusalKind::AttachedElsewhere);
    assert_eq!(refused(control.delete("vol1").await), RefusalKind::AttachedElsewhere);
    assert_eq!(refused(control.attach("vol2", "host-a").await), RefusalKind::NotFound);

    control.detach("vol1", None).await.unwrap();
    assert_eq!(refused(control.detach("vol1", None).await), RefusalKind::NotAttached);
    let second = control.attach("vol1", "host-b").await.unwrap();
    assert_ne!(first.id, second.id);
    control.detach("vol1", Some("host-b")).await.unwrap();
    control.delete("vol1").await.unwrap();

    let journal = control.journal().await.unwrap();
    journal::check(&journal).unwrap();
    let told: Vec<_> = journal.iter().map(|entry| (entry.event, entry.host.as_deref().unwrap())).collect();
    assert_eq!(
        told,
        [
            (Event::Attach, "host-a"),
            (Event::Refused, "host-b"),
            (Event::Refused, "host-b"),
            (Event::Detach, "host-a"),
            (Event::Attach, "host-b"),
            (Event::Detach, "host-b"),
        ]
    );
}

#[tokio::test]
async fn a_detach_is_refused_while_the_device_is_mounted_or_claimed() {
    let world = World::start().await;
    let device = world.formatted("vol1", "host-a").await;
    let mount = world.folder("mnt");
    mount_ext4(&device, &mount);
    assert_eq!(refused(world.control.detach("vol1", None).await), RefusalKind::Busy);
    fs::write(mount.join("f"), "still writable").unwrap();
    unmount(&mount);

    let claim = open_with(&device, OFlags::EXCL).unwrap();
    assert_eq!(refused(world.control.detach("vol1", None).await), RefusalKind::Busy);
    drop(claim);
    world.control.detach("vol1", None).await.unwrap();
}

#[tokio::test]
async fn who_keeps_a_detached_device_open_writes_nowhere() {
    let world = World::start().await;
    let device = world.formatted("vol1", "host-a").await;
    let opened = open_with(&device, OFlags::DIRECT).unwrap();
    opened.write_at(&Page([1; 4096]).0, 8 << 20).unwrap();
    world.control.detach("vol1", None).await.unwrap();
    let second = world.control.attach("vol1", "host-b").await.unwrap();
    assert_ne!(Path::new(&second.device), device, "a device that is held open is not used again");
    let before = fs::read(world.backing("vol1")).unwrap();
    assert_eq!(opened.write_at(&Page([2; 4096]).0, 8 << 20).unwrap_err().raw_os_error(), Some(28));
    assert_eq!(fs::read(world.backing("vol1")).unwrap(), before);
}

/// Writes 1, 2, 3, ... over the same page until told to stop; returns the last number that the storage took, when that
/// write began, and what the writes after it met.
fn write_on(file: &File, sync: bool, stop: &AtomicBool) -> (u64, Instant, Vec<io::Error>) {
    let started = Instant::now();
    let mut taken = (0, started);
    let mut errors = Vec::new();
    for number in 1_u64.. {
        let mut page = Page([0; 4096]);
        page.0[..8].copy_from_slice(&number.to_le_bytes());
        let began = Instant::now();
        let outcome =
            file.write_all_at(&page.0, 0).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        match outcome {
            Ok(()) => taken = (number, began),
            Err(error) => errors.push(error),
        }
        // A writer that nothing cuts off ends too, and then fails the test.
        if errors.len() >= 20 && stop.load(Ordering::Relaxed) || started.elapsed() > Duration::from_secs(10) {
            break;
        }
    }
    (taken.0, taken.1, errors)
}

fn number_in(path: &Path) -> u64 {
    u64::from_le_bytes(fs::read(path).unwrap()[..8].try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn force_detach_cuts_off_every_writer_and_nothing_of_theirs_reaches_the_backing_file() {
    let world = World::start().await;
    let device = world.formatted("vol1", "host-a").await;
    let mount = world.folder("old");
    mount_ext4(&device, &mount);
    let buffered = File::create(mount.join("buffered")).unwrap();
    let unsynced = File::create(mount.join("unsynced")).unwrap();
    File::create(mount.join("direct")).unwrap();
    let direct_file = open_with(&mount.join("direct"), OFlags::DIRECT).unwrap();
    for file in [&buffered, &unsynced, &direct_file] {
        file.write_all_at(&Page([0; 4096]).0, 0).unwrap();
        file.sync_all().unwrap();
    }
    let raw = File::options().write(true).open(&device).unwrap();

    let stop = AtomicBool::new(false);
    let (cut_at, frozen, by_buffer, by_direct) = std::thread::scope(|scope| {
        let by_buffer = scope.spawn(|| write_on(&buffered, true, &stop));
        let by_direct = scope.spawn(|| write_on(&direct_file, false, &stop));
        let client = world.control.clone();
        let (cut_at, frozen) = tokio::task::block_in_place(|| {
            std::thread::sleep(Duration::from_millis(200));
            (&unsynced).write_all(b"dirty page at the time of the cut").unwrap();
            tokio::runtime::Handle::current().block_on(client.force_detach("vol1")).unwrap();
            (Instant::now(), fs::read(world.backing("vol1")).unwrap())
        });
        stop.store(true, Ordering::Relaxed);
        (cut_at, frozen, by_buffer.join().unwrap(), by_direct.join().unwrap())
    });
    for (taken, began, errors) in [&by_buffer, &by_direct] {
        assert!(*taken > 10, "the writer was at work before the cut");
        assert!(*began < cut_at, "a write that began after the cut was taken");
        let first = errors.first().and_then(io::Error::raw_os_error);
        assert_eq!(first, Some(Errno::IO.raw_os_error()), "{errors:?}");
    }
    assert!(by_direct.2.iter().all(|error| error.raw_os_error() == Some(5)), "{:?}", by_direct.2);
    assert_eq!(unsynced.sync_all().unwrap_err().raw_os_error(), Some(5));
    assert!(raw.write_at(b"superblock", 1024).is_err(), "a write to the device itself");
    rustix::fs::sync();
    assert!(fs::read(world.backing("vol1")).unwrap() == frozen, "a byte arrived after the cut");

    let second = world.control.attach("vol1", "host-b").await.unwrap();
    assert_ne!(Path::new(&second.device), device);
    let moved = world.folder("new");
    mount_ext4(Path::new(&second.device), &moved);
    for (file, (taken, ..)) in [("buffered", &by_buffer), ("direct", &by_direct)] {
        let found = number_in(&moved.join(file));
        // A write that met the cut may have arrived before it, but was not said to have.
        assert!(found == *taken || found == taken + 1, "{file}: {taken} was taken, {found} is there");
    }
    fs::write(moved.join("new-owner"), "mine").unwrap();
    drop((buffered, unsynced, direct_file, raw));
    unmount(&mount);
    eventually("the cut device is unbound", || !is_bound(&device)).await;
    unmount(&moved);
    mount_ext4(Path::new(&second.device), &moved);
    assert_eq!(fs::read_to_string(moved.join("new-owner")).unwrap(), "mine");
    unmount(&moved);
    assert!(is_sound(Path::new(&second.device)), "the file system is sound");
    journal::check(&world.control.journal().await.unwrap()).unwrap();
}

#[tokio::test]
async fn data_survives_a_move_by_detach_and_by_preemption() {
    let world = World::start().await;
    let a = world.plugin("host-a", &[]).await;
    let b = world.plugin("host-b", &[]).await;
    let c = world.plugin("host-c", &["--preempt"]).await;
    a.ok("Create", json!({ "Name": "vol1" })).await;

    fs::write(a.mount("vol1").await.join("f"), "from a").unwrap();
    assert!(b.refusal("Mount", "vol1").await.ends_with(NOT_FOUND), "attached elsewhere, without preempt");
    a.ok("Unmount", json!({ "Name": "vol1" })).await;
    let on_b = b.mount("vol1").await;
    assert_eq!(fs::read_to_string(on_b.join("f")).unwrap(), "from a");

    let mut held = File::create(on_b.join("g")).unwrap();
    held.write_all(b"from b").unwrap();
    held.sync_all().unwrap();
    let on_c = c.mount("vol1").await;
    assert_eq!(fs::read_to_string(on_c.join("g")).unwrap(), "from b");
    held.write_all(b"more").unwrap();
    assert_eq!(held.sync_all().unwrap_err().raw_os_error(), Some(5), "b is cut off");
    assert!(b.refusal("Unmount", "vol1").await.ends_with(NOT_FOUND));
    c.ok("Unmount", json!({ "Name": "vol1" })).await;
    journal::check(&world.control.journal().await.unwrap()).unwrap();
}

#[tokio::test]
async fn the_plugin_answers_as_rexray_does() {
    let world = World::start().await;
    let plugin = world.plugin("host-a", &[]).await;
    let data = plugin.mount_root.join("vol1/data").display().to_string();
    let no_volume = |method: &str, name: &str| {
        (500, json!({ "Err": format!("docker-legacy: {method}: {name}: {NOT_FOUND}") }))
    };
    let ok = |body: Value| (200, body);
    let volume = json!({ "Name": "vol1", "Mountpoint": "", "Status": {} });
    let table = [
        ("Plugin.Activate", json!({}), ok(json!({ "Implements": ["VolumeDriver"] }))),
        ("VolumeDriver.Capabilities", json!({}), ok(json!({ "Capabilities": { "Scope": "global" } }))),
        ("VolumeDriver.List", json!({}), ok(json!({ "Volumes": [] }))),
        ("VolumeDriver.Mount", json!({ "Name": "vol1", "ID": "1" }), no_volume("Mount", "vol1")),
        ("VolumeDriver.Get", json!({ "Name": "vol1" }), no_volume("Get", "vol1")),
        ("VolumeDriver.Create", json!({ "Name": "vol1", "Opts": { "sizeMiB": "32" } }), ok(json!({}))),
        ("VolumeDriver.Create", json!({ "Name": "vol1", "Opts": null }), ok(json!({}))),
        ("VolumeDriver.Unmount", json!({ "Name": "vol1", "ID": "1" }), no_volume("Unmount", "vol1")),
        ("VolumeDriver.Mount", json!({ "Name": "vol1", "ID": "1" }), ok(json!({ "Mountpoint": data }))),
        ("VolumeDriver.Mount", json!({ "Name": "VOL1", "ID": "2" }), ok(json!({ "Mountpoint": data }))),
        ("VolumeDriver.Path", json!({ "Name": "vol1" }), ok(json!({ "Mountpoint": "" }))),
        ("VolumeDriver.Get", json!({ "Name": "vol1" }), ok(json!({ "Volume": volume }))),
        ("VolumeDriver.List", json!({}), ok(json!({ "Volumes": [volume] }))),
        // Ids are ignored: the same one twice ends both uses.
        ("VolumeDriver.Unmount", json!({ "Name": "vol1", "ID": "1" }), ok(json!({}))),
        ("VolumeDriver.Unmount", json!({ "Name": "Vol1", "ID": "1" }), ok(json!({}))),
        ("VolumeDriver.Unmount", json!({ "Name": "vol1", "ID": "1" }), no_volume("Unmount", "vol1")),
        ("VolumeDriver.Remove", json!({ "Name": "vol1" }), ok(json!({}))),
        ("VolumeDriver.Remove", json!({ "Name": "vol1" }), no_volume("Remove", "vol1")),
    ];
    for (step, (path, request, (status, body))) in table.into_iter().enumerate() {
        let answer = plugin.post(path, &request).await.unwrap();
        assert_eq!(
            answer.headers()["content-type"],
            "application/vnd.docker.plugins.v1.1+json",
            "step {step}: {path}"
        );
        assert_eq!(answer.status().as_u16(), status, "step {step}: {path} {request}");
        assert_eq!(answer.json::<Value>().await.unwrap(), body, "step {step}: {path} {request}");
    }
}

#[tokio::test]
async fn use_counts_are_lost_when_the_daemon_restarts() {
    let world = World::start().await;
    let mut plugin = world.plugin("host-a", &[]).await;
    plugin.ok("Create", json!({ "Name": "vol1" })).await;
    let data = plugin.mount("vol1").await;
    plugin.mount("vol1").await;
    fs::write(data.join("f"), "kept").unwrap();
    plugin.kill_and_restart().await;
    assert_eq!(fs::read_to_string(data.join("f")).unwrap(), "kept", "the mount outlives the daemon");
    plugin.ok("Unmount", json!({ "Name": "vol1" })).await;
    assert!(!data.exists(), "the first Unmount really unmounts");
    assert!(plugin.refusal("Unmount", "vol1").await.ends_with(NOT_FOUND));

    plugin.mount("vol1").await;
    plugin.mount("vol1").await;
    plugin.faults(json!({ "forget_counts": true })).await;
    plugin.ok("Unmount", json!({ "Name": "vol1" })).await;
    assert!(!data.exists(), "as after a restart");
}

#[tokio::test]
async fn a_device_with_data_is_never_formatted() {
    let world = World::start().await;
    let plugin = world.plugin("host-a", &[]).await;
    plugin.ok("Create", json!({ "Name": "vol1" })).await;
    let backing = File::options().write(true).open(world.backing("vol1")).unwrap();
    backing.write_all_at(b"\x55\xAA", 510).unwrap();
    let refusal = plugin.refusal("Mount", "vol1").await;
    assert!(refusal.contains("not formatted"), "{refusal}");
    assert_eq!(fs::read(world.backing("vol1")).unwrap()[510..512], *b"\x55\xAA");
}

#[tokio::test]
async fn faults_are_switched_on_and_off() {
    let world = World::start().await;
    let plugin = world.plugin("host-a", &[]).await;
    plugin.ok("Create", json!({ "Name": "vol1" })).await;
    let mount = json!({ "Name": "vol1", "ID": "1" });

    plugin.faults(json!({ "methods": { "Mount": { "fail": { "status": 200, "err": "no" } } } })).await;
    let answer = plugin.post("VolumeDriver.Mount", &mount).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap()), (200, r#"{"Err":"no"}"#.to_owned()));

    // Each of these does the work and spoils the answer.
    for spoilt in ["garbage", "half", "never"] {
        plugin.faults(json!({ "methods": { "Mount": { "answer": spoilt } } })).await;
        let asked = plugin.post("VolumeDriver.Mount", &mount);
        let understood = tokio::time::timeout(Duration::from_secs(1), async {
            asked.await.ok()?.json::<Value>().await.ok()
        });
        assert_eq!(understood.await.ok().flatten(), None, "{spoilt}");
        let device = world.control.volume("vol1").await.unwrap().attachment.unwrap().device;
        assert!(!is_idle(Path::new(&device)).unwrap(), "{spoilt}: it is mounted");
    }

    plugin
        .faults(json!({ "forget_counts": true, "methods": { "Unmount": { "busy": true, "times": 2 } } }))
        .await;
    for _ in 0..2 {
        assert!(plugin.refusal("Unmount", "vol1").await.ends_with("device or resource busy"));
    }
    plugin.ok("Unmount", mount.clone()).await;

    for delay in ["delay_before_ms", "delay_after_ms"] {
        fs::write(world.path("faults.json"), json!({ "methods": { "Get": { delay: 120 } } }).to_string())
            .unwrap();
        let began = Instant::now();
        plugin.ok("Get", mount.clone()).await;
        assert!(began.elapsed() >= Duration::from_millis(120), "{delay}");
    }
    fs::remove_file(world.path("faults.json")).unwrap();
}

#[tokio::test]
async fn a_task_that_takes_too_long_is_answered_with_an_empty_error_and_goes_on() {
    let world = World::start().await;
    let plugin = world.plugin("host-a", &[]).await;
    plugin.ok("Create", json!({ "Name": "v" })).await;
    plugin.faults(json!({ "task_timeout_ms": 50, "methods": { "Mount": { "delay_before_ms": 300 } } })).await;
    let answer = plugin.post("VolumeDriver.Mount", &json!({ "Name": "v" })).await.unwrap();
    assert_eq!(answer.status(), 500);
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({ "Err": "docker-legacy: Mount: v: failed: " }));
    let data = plugin.mount_root.join("v/data");
    eventually("the mount that went on", || data.is_dir()).await;
    plugin.faults(json!({})).await;
    plugin.ok("Unmount", json!({ "Name": "v" })).await;
}

#[tokio::test]
async fn a_volume_that_stays_attaching_is_attached_and_cannot_be_unmounted() {
    let world = World::start().await;
    let (a, b) = (world.plugin("host-a", &[]).await, world.plugin("host-b", &[]).await);
    a.ok("Create", json!({ "Name": "v" })).await;
    a.faults(json!({ "task_timeout_ms": 50, "methods": { "Mount": { "stuck": true } } })).await;
    let answer = a.post("VolumeDriver.Mount", &json!({ "Name": "v" })).await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({ "Err": "docker-legacy: Mount: v: failed: " }));
    assert_eq!(a.refusal("Unmount", "v").await, "docker-legacy: Unmount: v: failed: resource not found");
    // It is attached all the same.
    assert_eq!(b.refusal("Mount", "v").await, "docker-legacy: Mount: v: failed: resource not found");
    a.faults(json!({})).await;
    a.mount("v").await;
    a.ok("Unmount", json!({ "Name": "v" })).await;
    b.mount("v").await;
    b.ok("Unmount", json!({ "Name": "v" })).await;
}

#[tokio::test]
async fn a_mount_whose_caller_hung_up_goes_on() {
    let world = World::start().await;
    let plugin = world.plugin("host-a", &[]).await;
    plugin.ok("Create", json!({ "Name": "vol1" })).await;
    plugin.faults(json!({ "methods": { "Mount": { "delay_before_ms": 150 } } })).await;
    let mount = json!({ "Name": "vol1" });
    let impatient = plugin.post("VolumeDriver.Mount", &mount);
    assert!(tokio::time::timeout(Duration::from_millis(50), impatient).await.is_err());
    eventually("it is mounted", || plugin.mount_root.join("vol1/data").exists()).await;
}

#[tokio::test]
async fn an_unmount_in_use_is_busy_and_can_be_repeated() {
    let world = World::start().await;
    let plugin = world.plugin("host-a", &[]).await;
    plugin.ok("Create", json!({ "Name": "vol1" })).await;
    let held = File::create(plugin.mount("vol1").await.join("f")).unwrap();
    assert!(plugin.refusal("Unmount", "vol1").await.ends_with("device or resource busy"));
    drop(held);
    plugin.ok("Unmount", json!({ "Name": "vol1" })).await;
}

#[tokio::test]
async fn a_detach_that_comes_late_takes_the_volume_from_its_new_owner() {
    let world = World::start().await;
    let old = world.plugin("host-a", &[]).await;
    old.ok("Create", json!({ "Name": "vol1" })).await;
    old.mount("vol1").await;
    old.faults(json!({ "methods": { "Unmount": { "delay_midway_ms": 400 } } })).await;
    let request = json!({ "Name": "vol1" });
    let (late, ()) = tokio::join!(old.post("VolumeDriver.Unmount", &request), async {
        eventually("the old host has unmounted", || !old.mount_root.join("vol1/data").exists()).await;
        world.control.force_detach("vol1").await.unwrap();
        world.control.attach("vol1", "host-b").await.unwrap();
    });
    assert_eq!(late.unwrap().status().as_u16(), 200);
    assert_eq!(world.control.volume("vol1").await.unwrap().attachment, None, "the new owner lost it");
}

#[tokio::test]
async fn a_killed_control_plane_finds_its_attachments_again() {
    let mut world = World::start().await;
    let device = world.formatted("mounted", "host-a").await;
    let mount = world.folder("mnt");
    mount_ext4(&device, &mount);
    world.formatted("idle", "host-b").await;
    let before = world.control.volumes().await.unwrap();

    world.kill_storage().await;
    eventually("the idle device is unbound", || world.bound_devices() == 1).await;
    fs::write(mount.join("f"), "while it was down").unwrap();
    world.start_storage().await;
    let after = world.control.volumes().await.unwrap();
    assert_eq!(after[1], before[1], "the mounted one keeps its device");
    let renewed = after[0].attachment.clone().unwrap();
    assert_eq!((renewed.id, renewed.host), (before[0].attachment.clone().unwrap().id, "host-b".to_owned()));
    assert_eq!(world.bound_devices(), 2);
    assert_eq!(refused(world.control.attach("mounted", "host-b").await), RefusalKind::AttachedElsewhere);
    assert_eq!(refused(world.control.detach("mounted", None).await), RefusalKind::Busy);
    world.control.force_detach("mounted").await.unwrap();
    let second = world.control.attach("mounted", "host-b").await.unwrap();
    unmount(&mount);
    mount_ext4(Path::new(&second.device), &mount);
    unmount(&mount);
    journal::check(&world.control.journal().await.unwrap()).unwrap();

    world.stop_storage().await;
    eventually("an orderly end detaches what is idle", || world.bound_devices() == 0).await;
    world.start_storage().await;
    assert!(world.control.volumes().await.unwrap().iter().all(|volume| volume.attachment.is_none()));
    let held = journal::holdings(&world.control.journal().await.unwrap()).unwrap();
    assert!(held.is_empty(), "{held:?}");
}

#[tokio::test]
async fn a_control_plane_killed_after_a_cut_completes_the_force_detach() {
    let mut world = World::start().await;
    let device = world.formatted("vol1", "host-a").await;
    let mount = world.folder("mnt");
    mount_ext4(&device, &mount);
    world.kill_storage().await;
    let number = device.to_str().unwrap().trim_start_matches("/dev/loop").parse().unwrap();
    let (binding, adopted) = LoopDevice::adopt(&world.backing("vol1"), number).unwrap();
    assert_eq!(binding, Binding::Bound);
    adopted.unwrap().cut().unwrap();

    world.start_storage().await;
    assert_eq!(world.control.volume("vol1").await.unwrap().attachment, None);
    let second = world.control.attach("vol1", "host-b").await.unwrap();
    assert_ne!(Path::new(&second.device), device);
    let journal = world.control.journal().await.unwrap();
    journal::check(&journal).unwrap();
    let events: Vec<_> = journal.iter().map(|entry| entry.event).collect();
    assert_eq!(events, [Event::Attach, Event::ForceDetach, Event::Attach]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_race_never_share_a_volume() {
    let world = World::start().await;
    for volume in ["vol1", "vol2"] {
        world.control.create(volume, None).await.unwrap();
    }
    let hosts = (0..6).map(|number| {
        let control = world.control.clone();
        tokio::spawn(async move {
            let host = format!("host-{number}");
            let mut won = 0;
            for turn in 0..20 {
                let volume = if (turn + number) % 2 == 0 { "vol1" } else { "VOL2" };
                won += usize::from(control.attach(volume, &host).await.is_ok());
                // Most refusals are right here; the journal tells which were not.
                let _ = match (turn + number) % 3 {
                    0 => control.force_detach(volume).await,
                    1 => control.detach(volume, None).await,
                    _ => control.detach(volume, Some(&host)).await,
                };
            }
            won
        })
    });
    let won: usize = futures::future::join_all(hosts).await.into_iter().map(Result::unwrap).sum();
    let journal = world.control.journal().await.unwrap();
    journal::check(&journal).unwrap();
    assert!(won > 10, "{won}");
    assert!(journal.iter().any(|entry| entry.event == Event::Refused), "they met");
}

#[tokio::test]
async fn one_directory_has_one_control_plane() {
    let world = World::start().await;
    assert!(world.second_storage_is_refused());
}

#[tokio::test]
async fn a_mount_takes_milliseconds() {
    let world = World::start().await;
    let plugin = world.plugin("host-a", &[]).await;
    let (mut empty, mut formatted) = (Vec::new(), Vec::new());
    for number in 0..20 {
        let volume = json!({ "Name": format!("vol{number}") });
        plugin.ok("Create", volume.clone()).await;
        for times in [&mut empty, &mut formatted] {
            let began = Instant::now();
            plugin.ok("Mount", volume.clone()).await;
            times.push(began.elapsed());
            plugin.ok("Unmount", volume.clone()).await;
        }
    }
    for (times, limit) in [(&mut empty, 300), (&mut formatted, 30)] {
        times.sort();
        let (half, most) = (times[times.len() / 2], times[times.len() - 1]);
        writeln!(io::stderr(), "Mount: half within {half:?}, all within {most:?}").unwrap();
        assert!(half < Duration::from_millis(limit), "{times:?}");
    }
}
