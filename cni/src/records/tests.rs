use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::names::Key;

fn key(id: &str) -> Key {
    Key { network: "pods".into(), container_id: id.into(), interface: "eth0".into() }
}

fn wanted(key: &Key, boot: &str) -> Record {
    Record {
        version: RECORD_VERSION,
        network: key.network.clone(),
        container_id: key.container_id.clone(),
        interface: key.interface.clone(),
        netns: "/run/netns/x".into(),
        host_interface: key.host_interface(),
        mac: key.pod_mac(),
        host_mac: key.host_mac(),
        mtu: 1500,
        addresses: Vec::new(),
        pod_namespace: String::new(),
        pod_name: String::new(),
        pod_uid: String::new(),
        host_ports: Vec::new(),
        hook: crate::record::Hook::DEFAULT,
        created: 0,
        boot_id: boot.into(),
    }
}

fn pool(cidrs: &[&str]) -> Pool {
    let cidrs: Vec<_> = cidrs.iter().map(|c| c.parse().expect("range")).collect();
    Pool::new(&cidrs).expect("pool")
}

fn allocate(records: &Records, pool: &Pool, id: &str) -> Result<Record, Error> {
    let wanted = wanted(&key(id), records.boot_id());
    records.lock()?.allocate(pool, wanted, &[], &BTreeSet::new())
}

fn free(records: &Records, id: &str) {
    let mut locked = records.lock().expect("lock");
    let entry = locked.find(&key(id)).cloned().expect("the record");
    locked.remove(&entry).expect("remove");
}

/// C6: 200 concurrent allocations, each with the lock taken anew, never share an address.
#[test]
fn concurrent_allocations_never_share_an_address() {
    let dir = tempfile::tempdir().expect("directory");
    let pool = pool(&["10.0.0.0/24", "fd00::/64"]);
    let next = AtomicUsize::new(0);
    let given: Vec<IpAddr> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let records = Records::new(dir.path(), "boot");
                    let mut mine = Vec::new();
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= 200 {
                            return mine;
                        }
                        let id = format!("c{i}");
                        mine.extend(allocate(&records, &pool, &id).expect("free").addresses);
                    }
                })
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().expect("worker")).collect()
    });
    assert_eq!(given.len(), 400);
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 400);
    let locked = Records::new(dir.path(), "boot").lock().expect("lock");
    assert_eq!(locked.used().len(), 400);
    for entry in locked.entries() {
        locked.read(entry).expect("readable").expect("whole");
    }
}

#[test]
fn a_requested_address_is_given_or_refused_but_never_shared() {
    let dir = tempfile::tempdir().expect("directory");
    let records = Records::new(dir.path(), "boot");
    let pool = pool(&["10.0.0.0/24", "fd00::/64"]);
    let ask = |id: &str, address: &str, avoid: &[&str]| {
        let address = [address.parse().expect("address")];
        let avoid = avoid.iter().map(|a| a.parse().expect("address")).collect();
        records.lock().expect("lock").allocate(&pool, wanted(&key(id), "boot"), &address, &avoid)
    };
    let given = ask("a", "10.0.0.77", &[]).expect("free").addresses;
    assert_eq!(given.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.77", "fd00::2"]);
    assert!(matches!(ask("b", "10.0.0.77", &[]), Err(Error::AddressTaken(_))));
    assert!(matches!(ask("b", "10.0.0.78", &["10.0.0.78"]), Err(Error::AddressRouted(_))));
    for outside in ["10.0.0.1", "10.0.1.5", "fd01::5"] {
        assert_eq!(ask("b", outside, &[]).expect_err(outside).code(), 7);
    }
    // A repeated ADD may ask for the same address, and for another one.
    assert_eq!(ask("a", "10.0.0.77", &[]).expect("its own").addresses, given);
    let moved = ask("a", "10.0.0.80", &[]).expect("free").addresses;
    assert_eq!(moved[1], given[1]);
    assert_eq!(records.lock().expect("lock").used(), moved.into_iter().collect());
}

#[test]
fn two_networks_share_one_pool_without_a_clash() {
    let dir = tempfile::tempdir().expect("directory");
    let records = Records::new(dir.path(), "boot");
    let pool = pool(&["10.0.0.0/29"]);
    let mut other = key("c1");
    other.network = "second".into();
    let a = allocate(&records, &pool, "c1").expect("free");
    let b = records
        .lock()
        .expect("lock")
        .allocate(&pool, wanted(&other, "boot"), &[], &BTreeSet::new())
        .expect("free");
    assert_ne!(a.addresses, b.addresses);
    assert_ne!(a.host_interface, b.host_interface);
}

/// C7: what was given last is remembered on disk, so a freed address is not the next one.
#[test]
fn a_freed_address_rests_over_processes() {
    let dir = tempfile::tempdir().expect("directory");
    let pool = pool(&["10.0.0.0/29"]);
    let mut order = Vec::new();
    for i in 0..6 {
        // Each round is a process of its own.
        let records = Records::new(dir.path(), "boot");
        let id = format!("c{i}");
        order.push(allocate(&records, &pool, &id).expect("free").addresses[0].to_string());
        free(&records, &id);
    }
    assert_eq!(order, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"]);
}

/// C6: whatever a killed process leaves, the next one goes on.
#[test]
fn leftovers_of_a_killed_process_are_cleared() {
    let dir = tempfile::tempdir().expect("directory");
    let records = Records::new(dir.path(), "boot");
    let pool = pool(&["10.0.0.0/30"]);
    drop(records.lock().expect("lock"));
    // Killed while it wrote a record, and while it wrote the state.
    let partial = dir.path().join("endpoints").join(PARTIAL);
    fs::write(&partial, "{\"versi").expect("write");
    fs::write(dir.path().join("ipam.new"), "{").expect("write");
    assert_eq!(allocate(&records, &pool, "c1").expect("free").addresses.len(), 1);
    assert!(!partial.exists());
    // Killed after the record was made: the next ADD of the key gets the same address.
    let again = allocate(&records, &pool, "c1").expect("its own");
    assert_eq!(again.addresses[0].to_string(), "10.0.0.2");
    assert_eq!(records.lock().expect("lock").entries().len(), 1);
}

#[test]
fn a_damaged_state_file_costs_no_address() {
    let dir = tempfile::tempdir().expect("directory");
    let records = Records::new(dir.path(), "boot");
    let pool = pool(&["10.0.0.0/24"]);
    let a = allocate(&records, &pool, "c1").expect("free");
    for damage in ["", "{", "{\"lastUsed\":7}", "[]"] {
        fs::write(dir.path().join("ipam.json"), damage).expect("write");
        let locked = records.lock().expect("lock");
        assert_eq!(locked.used(), a.addresses.iter().copied().collect(), "{damage}");
    }
}

/// C6: a torn record is detected, keeps its address from being given twice, and stops nothing.
#[test]
fn a_torn_record_is_detected_and_blocks_nobody() {
    let dir = tempfile::tempdir().expect("directory");
    let records = Records::new(dir.path(), "boot");
    let pool = pool(&["10.0.0.0/29"]);
    let record = allocate(&records, &pool, "c1").expect("free");
    let path = dir.path().join("endpoints").join(record.file_name());
    let whole = fs::read(&path).expect("read");
    let damages: [Vec<u8>; 5] = [
        Vec::new(),
        whole[..whole.len() / 2].to_vec(),
        vec![0; whole.len()],
        String::from_utf8_lossy(&whole).replace("10.0.0.2", "10.0.0.3").into_bytes(),
        String::from_utf8_lossy(&whole).replace("\"version\":1", "\"version\":9").into_bytes(),
    ];
    for (i, damage) in damages.iter().enumerate() {
        fs::write(&path, damage).expect("write");
        let locked = records.lock().expect("lock");
        let entry = locked.find(&key("c1")).expect("found by name");
        let torn = locked.read(entry).expect("readable").expect_err("damaged");
        assert!(torn.to_string().contains("slu"), "{torn}");
        drop(locked);
        let other = allocate(&records, &pool, &format!("other{i}"));
        if i < 4 {
            assert_ne!(other.expect("free").addresses, record.addresses);
        } else {
            assert!(matches!(other, Err(Error::Pool(PoolError::Full { used: 5, size: 5, .. }))));
        }
    }
    free(&records, "c1");
    let again = allocate(&records, &pool, "c9").expect("freed by key");
    assert_eq!(again.addresses, record.addresses);
}

/// C7: after a reboot the records of the last boot are gone, also damaged ones.
#[test]
fn records_of_an_earlier_boot_are_dropped() {
    let dir = tempfile::tempdir().expect("directory");
    let before = Records::new(dir.path(), "boot-1");
    let pool = pool(&["10.0.0.0/29"]);
    for id in ["a", "b", "c"] {
        allocate(&before, &pool, id).expect("free");
    }
    let torn = dir
        .path()
        .join("endpoints")
        .join(before.lock().expect("lock").find(&key("b")).expect("b").name.to_string());
    fs::write(torn, "").expect("write");
    let after = Records::new(dir.path(), "boot-2");
    assert_eq!(after.lock().expect("lock").entries(), []);
    // The order goes on where it was.
    let next = allocate(&after, &pool, "d").expect("free");
    assert_eq!(next.addresses[0].to_string(), "10.0.0.5");
}

/// A record whose interface is gone, and that is old, is a leak; a young one is an ADD under way.
#[test]
fn only_old_records_without_an_interface_are_leaks() {
    let dir = tempfile::tempdir().expect("directory");
    let records = Records::new(dir.path(), "boot");
    let pool = pool(&["10.0.0.0/24"]);
    for id in ["old-gone", "old-there", "young-gone"] {
        allocate(&records, &pool, id).expect("free");
    }
    let locked = records.lock().expect("lock");
    for id in ["old-gone", "old-there"] {
        let entry = locked.find(&key(id)).expect("record");
        let old = SystemTime::now() - LEAK_AGE * 2;
        File::options()
            .write(true)
            .open(&entry.path)
            .and_then(|f| f.set_modified(old))
            .expect("set time");
    }
    let there = key("old-there").host_interface();
    let leaked = locked.leaked(|name| name == there);
    assert_eq!(leaked, [locked.find(&key("old-gone")).expect("record").clone()]);
}

#[test]
fn file_names_parse_back_and_foreign_ones_are_left_alone() {
    let dir = tempfile::tempdir().expect("directory");
    let records = Records::new(dir.path(), "boot");
    let pool = pool(&["10.0.0.0/24", "fd00::/64"]);
    let record = allocate(&records, &pool, "c1").expect("free");
    let name = FileName::parse(&record.file_name()).expect("own name");
    assert_eq!(name.addresses, record.addresses);
    let foreign = ["pod.json", "slu,10.0.0.1.json", "sluxyz,10.0.0.1.json", "slu12,1.2.3.json"];
    for name in foreign {
        assert_eq!(FileName::parse(name), None, "{name}");
        fs::write(dir.path().join("endpoints").join(name), "x").expect("write");
    }
    let locked = records.lock().expect("lock");
    assert_eq!(locked.entries().len(), 1);
    assert_eq!(locked.foreign().len(), foreign.len());
}

#[test]
fn a_lock_that_was_never_made_makes_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    let state = dir.path().join("none");
    assert!(Records::new(&state, "boot").lock_if_exists().expect("no error").is_none());
    assert!(!state.exists());
}
