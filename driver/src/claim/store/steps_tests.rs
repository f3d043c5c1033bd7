//! What becomes of the files of steps: torn, old, of another boot, without a plan, or on a full disk.

use super::{
    tests::{attachment, checkpoint},
    *,
};

/// A store whose claim u1 is attached: its plan in `u1.json`, its step in `u1.step`.
fn attached(dir: &Path) -> Checkpoint {
    let (store, problems) = Store::open_in_boot(dir, "boot-1").unwrap();
    assert_eq!(problems, []);
    store.put(checkpoint("u1", "ens5")).unwrap();
    let there = store.update("u1", |it| it.interfaces[0].attachment = Some(attachment("p1"))).unwrap();
    assert!(dir.join("u1.step").exists(), "a step is written beside the plan");
    there
}

fn open(dir: &Path, boot: &str) -> (Option<Checkpoint>, Vec<String>) {
    let (store, problems) = Store::open_in_boot(dir, boot).unwrap();
    let name = |problem: &StoreProblem| problem.path.file_name().unwrap().to_string_lossy().into_owned();
    (store.get("u1"), problems.iter().map(name).collect())
}

#[test]
fn a_step_counts_until_the_boot_ends() {
    let dir = tempfile::tempdir().unwrap();
    let there = attached(dir.path());
    assert_eq!(open(dir.path(), "boot-1"), (Some(there), vec![]));
    let planned = Some(checkpoint("u1", "ens5"));
    assert_eq!(open(dir.path(), "boot-2"), (planned.clone(), vec![]));

    // Its file may stay; what is written in the next boot counts all the same, although the step's revision is higher.
    let (store, _) = Store::open_in_boot(dir.path(), "boot-2").unwrap();
    let closed = store.update("u1", |it| it.interfaces[0].reserved = Some(9)).unwrap();
    assert_eq!(open(dir.path(), "boot-2"), (Some(closed), vec![]));
    assert_eq!(open(dir.path(), "boot-3"), (planned, vec![]));
}

#[test]
fn a_step_that_is_torn_or_cut_short_is_set_aside_and_the_plan_counts() {
    let tear: [fn(&str) -> String; 4] = [
        |_| String::new(),
        |text| text[..text.len() / 2].to_owned(),
        |text| "\0".repeat(text.len()),
        |text| text.replace("\"version\": 2", "\"version\": 99"),
    ];
    for tear in tear {
        let dir = tempfile::tempdir().unwrap();
        attached(dir.path());
        let step = dir.path().join("u1.step");
        let torn = tear(&fs::read_to_string(&step).unwrap());
        fs::write(&step, &torn).unwrap();
        let planned = Some(checkpoint("u1", "ens5"));
        assert_eq!(open(dir.path(), "boot-1"), (planned.clone(), vec!["u1.step.bad".to_owned()]), "{torn:?}");
        assert_eq!(open(dir.path(), "boot-1"), (planned, vec![]), "reported once: {torn:?}");
    }
}

#[test]
fn a_plan_that_is_torn_is_made_anew_from_its_step() {
    let dir = tempfile::tempdir().unwrap();
    let there = attached(dir.path());
    let plan = dir.path().join("u1.json");
    fs::write(&plan, "{").unwrap();
    assert_eq!(open(dir.path(), "boot-1"), (Some(there.clone()), vec!["u1.json.bad".to_owned()]));
    assert!(plan.exists());
    assert_eq!(open(dir.path(), "boot-1"), (Some(there), vec![]));
}

#[test]
fn the_higher_revision_counts() {
    let dir = tempfile::tempdir().unwrap();
    attached(dir.path());
    let (step, old) = (dir.path().join("u1.step"), dir.path().join("old"));
    fs::copy(&step, &old).unwrap();
    let (store, _) = Store::open_in_boot(dir.path(), "boot-1").unwrap();
    let changed = store
        .update("u1", |it| {
            it.interfaces[0].attachment = None;
            it.interfaces[0].plan.mtu = Some(1400);
        })
        .unwrap();
    assert!(!step.exists(), "a write of the plan has it all");
    // As if the daemon had been killed before it could remove the step.
    fs::copy(&old, &step).unwrap();
    assert_eq!(open(dir.path(), "boot-1"), (Some(changed.clone()), vec![]));
    assert_eq!(Store::read(dir.path()).unwrap(), [changed]);

    let (store, _) = Store::open_in_boot(dir.path(), "boot-1").unwrap();
    let again = store.update("u1", |it| it.interfaces[0].removing = Some(3)).unwrap();
    assert_eq!(open(dir.path(), "boot-1"), (Some(again), vec![]), "numbers go on after a start");
}

#[test]
fn a_step_without_a_plan_is_of_a_claim_that_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    attached(dir.path());
    fs::remove_file(dir.path().join("u1.json")).unwrap();
    assert_eq!(Store::read(dir.path()).unwrap(), []);
    assert_eq!(open(dir.path(), "boot-1"), (None, vec![]));
    assert!(!dir.path().join("u1.step").exists());
}

#[test]
fn a_claim_that_is_forgotten_leaves_no_step() {
    let dir = tempfile::tempdir().unwrap();
    attached(dir.path());
    let (store, _) = Store::open_in_boot(dir.path(), "boot-1").unwrap();
    store.update("u1", |it| it.interfaces[0].attachment = None).unwrap();
    store.remove("u1").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A file system of its own, in a mount namespace that ends with its thread.
#[test]
fn on_a_full_disk_a_step_fails_and_the_one_before_counts() {
    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: root alone may mount a small file system");
        return;
    }
    let test = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        let there = attached(dir.path());
        let (store, _) = Store::open_in_boot(dir.path(), "boot-1").unwrap();
        let filler = dir.path().join("filler");
        fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
        let error = store.update("u1", |it| it.interfaces[0].removing = Some(3)).unwrap_err();
        let StoreError::Io { action: "write", path, source } = error else { panic!("{error}") };
        assert_eq!((path, source.kind()), (dir.path().join("u1.step"), io::ErrorKind::StorageFull));
        assert_eq!(store.get("u1"), Some(there.clone()), "memory is as the disk");
        assert_eq!(open(dir.path(), "boot-1"), (Some(there), vec![]));
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.into_iter().all(|name| !name.to_string_lossy().starts_with(TEMPORARY)));

        fs::remove_file(&filler).unwrap();
        let again = store.update("u1", |it| it.interfaces[0].removing = Some(3)).unwrap();
        assert_eq!(open(dir.path(), "boot-1"), (Some(again), vec![]));
        nix::mount::umount(dir.path()).unwrap();
    };
    std::thread::spawn(test).join().expect("the test in its thread");
}
