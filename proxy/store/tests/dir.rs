//! A directory of manifests, followed with real inotify.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_model::{ObjectName, ResourceKind};
use sluice_store::{Cache, SourceError, SourceOptions, SourceUrl, Stream};
use tempfile::TempDir;

/// Long enough for the slowest machine; no test waits for it unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cache that follows a directory.
struct Follower {
    stream: Stream,
    cache: Cache,
    /// Messages of all rejections that were news.
    warned: Vec<String>,
}

impl Follower {
    fn new(path: &Path) -> Self {
        Self::with(path, &SourceOptions::default())
    }

    fn with(path: &Path, options: &SourceOptions) -> Self {
        let url = SourceUrl::Dir(path.to_owned());
        let stream = Stream::open(&url, options).unwrap();
        Self { stream, cache: Cache::new(), warned: Vec::new() }
    }

    /// Follows until the cache is as expected.
    async fn until(&mut self, what: &str, expected: impl Fn(&Cache) -> bool) {
        let follow = async {
            while !expected(&self.cache) {
                let batch = self.stream.next_batch().await.expect("the source never ends");
                let changes = self.cache.ingest(batch);
                self.warned.extend(changes.rejected.iter().map(ToString::to_string));
            }
        };
        if tokio::time::timeout(PATIENCE, follow).await.is_err() {
            let rejected: Vec<String> = self.cache.rejected().map(ToString::to_string).collect();
            panic!("never seen: {what}; there is {:?}; rejected {rejected:?}", self.names());
        }
    }

    async fn synced(&mut self) {
        self.until("the first list", Cache::synced).await;
    }

    /// Follows until all that was done to the directory so far has been seen: puts a Namespace into
    /// it and waits for that.
    async fn settle(&mut self, directory: &Path, marker: &str) {
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {marker}}}\n");
        fs::write(directory.join(format!("zz-{marker}.yaml")), text).unwrap();
        self.until("the marker", |cache| cache.has_namespace(marker)).await;
    }

    fn names(&self) -> Vec<String> {
        self.cache.services().map(|service| service.meta.name.to_string()).collect()
    }

    fn port(&self, name: &str) -> u16 {
        port(&self.cache, name)
    }

    fn rejected(&self) -> Vec<String> {
        self.cache.rejected().map(ToString::to_string).collect()
    }
}

/// The port of a Service of namespace `default`; 0 if it is not there.
fn port(cache: &Cache, name: &str) -> u16 {
    cache.service(&ObjectName::new("default", name)).map_or(0, |service| service.ports[0].port)
}

fn service(name: &str, port: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: 10.96.0.1\n  \
         ports:\n  - port: {port}\n"
    )
}

fn temp() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    (directory, path)
}

#[tokio::test]
async fn files_come_change_and_go() {
    let (_guard, path) = temp();
    fs::write(path.join("a.yaml"), service("a", 80) + "---\n" + &service("b", 80)).unwrap();
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"},"spec":{"ports":[{"port":1}]}}"#;
    fs::write(path.join("c.json"), json).unwrap();
    fs::write(path.join("d.txt"), service("d", 80)).unwrap();
    fs::write(path.join(".e.yaml"), service("e", 80)).unwrap();
    fs::write(path.join("f.yaml~"), service("f", 80)).unwrap();
    let mut follower = Follower::new(&path);
    follower.synced().await;
    assert_eq!(follower.names(), ["default/a", "default/b", "default/c"]);

    fs::write(path.join("g.yml"), service("g", 80)).unwrap();
    follower.until("a new file", |cache| port(cache, "g") == 80).await;

    fs::write(path.join("a.yaml"), service("a", 81)).unwrap();
    follower.until("the edit", |cache| port(cache, "a") == 81 && port(cache, "b") == 0).await;

    fs::remove_file(path.join("a.yaml")).unwrap();
    follower.until("the removal", |cache| port(cache, "a") == 0).await;
    assert_eq!(follower.names(), ["default/c", "default/g"]);
    assert!(follower.stream.status().borrow().connected);
}

#[tokio::test]
async fn a_file_renamed_over_another_takes_its_place() {
    let (_guard, path) = temp();
    fs::write(path.join("a.yaml"), service("a", 80)).unwrap();
    let mut follower = Follower::new(&path);
    follower.synced().await;
    // What `sed -i` and careful editors do.
    fs::write(path.join("sedXyZ"), service("a", 81)).unwrap();
    fs::rename(path.join("sedXyZ"), path.join("a.yaml")).unwrap();
    follower.until("the new content", |cache| port(cache, "a") == 81).await;

    fs::rename(path.join("a.yaml"), path.join("b.yaml")).unwrap();
    follower.settle(&path, "renamed").await;
    assert_eq!(follower.port("a"), 81, "a file that only changes its name loses nothing");

    fs::rename(path.join("b.yaml"), path.join("b.yaml.off")).unwrap();
    follower.until("the file's end", |cache| port(cache, "a") == 0).await;
}

#[tokio::test]
async fn a_file_is_read_when_its_writer_is_done() {
    let (_guard, path) = temp();
    fs::write(path.join("a.yaml"), service("a", 80) + "---\n" + &service("b", 80)).unwrap();
    let mut follower = Follower::new(&path);
    follower.synced().await;
    let mut file = File::create(path.join("a.yaml")).unwrap();
    file.write_all(service("a", 81).as_bytes()).unwrap();
    follower.settle(&path, "half").await;
    assert_eq!((follower.port("a"), follower.port("b")), (80, 80));
    file.write_all(("---\n".to_owned() + &service("b", 82)).as_bytes()).unwrap();
    drop(file);
    follower.until("the rest", |cache| port(cache, "a") == 81 && port(cache, "b") == 82).await;
}

/// O5: a document that is not YAML is named with its line, loses nothing and stops nothing else.
#[tokio::test]
async fn a_broken_document_keeps_what_was_known() {
    let (_guard, path) = temp();
    let file = path.join("a.yaml");
    fs::write(&file, service("a", 80) + "---\n" + &service("b", 80)).unwrap();
    let mut follower = Follower::new(&path);
    follower.synced().await;
    // The second document ends in the middle of a flow mapping.
    fs::write(&file, service("a", 81) + "---\nmetadata: {name: b\n---\n" + &service("c", 80))
        .unwrap();
    follower.until("the other documents", |cache| port(cache, "c") == 80).await;
    assert_eq!((follower.port("a"), follower.port("b")), (81, 80));
    assert_eq!(follower.rejected().len(), 1);
    let message = &follower.rejected()[0];
    assert!(message.contains("a.yaml#2"), "{message}");
    assert!(message.contains(" at line 1"), "the file's line, not the document's: {message}");

    fs::write(&file, service("a", 81) + "---\n" + &service("c", 80)).unwrap();
    follower.until("the repair", |cache| port(cache, "b") == 0).await;
    assert_eq!(follower.rejected(), [""; 0]);
}

/// O5: an object with a bad field keeps its last good form; the warning comes once.
#[tokio::test]
async fn a_rejected_update_keeps_the_last_good_version() {
    let (_guard, path) = temp();
    let file = path.join("a.yaml");
    fs::write(&file, service("a", 80) + "---\n" + &service("b", 80)).unwrap();
    let mut follower = Follower::new(&path);
    follower.synced().await;
    fs::write(&file, service("a", 70000) + "---\n" + &service("b", 81)).unwrap();
    follower.until("the good one", |cache| port(cache, "b") == 81).await;
    assert_eq!(follower.port("a"), 80);
    let message = format!(
        "Service default/a: spec.ports[0].port: 70000 is not 1 to 65535 ({}#1)",
        file.display()
    );
    assert_eq!(follower.rejected(), [message.as_str()]);

    fs::write(&file, service("a", 70000) + "---\n" + &service("b", 82)).unwrap();
    follower.until("another edit", |cache| port(cache, "b") == 82).await;
    assert_eq!(follower.warned, [message], "warned about once");

    fs::write(&file, service("a", 83) + "---\n" + &service("b", 82)).unwrap();
    follower.until("the repair", |cache| port(cache, "a") == 83).await;
    assert_eq!(follower.rejected(), [""; 0]);
}

#[tokio::test]
async fn of_an_object_in_two_files_the_first_by_path_counts() {
    let (_guard, path) = temp();
    fs::write(path.join("a.yaml"), service("x", 80)).unwrap();
    fs::write(path.join("b.yaml"), service("x", 90)).unwrap();
    let mut follower = Follower::new(&path);
    follower.synced().await;
    assert_eq!(follower.port("x"), 80);
    assert_eq!(follower.warned.len(), 1);
    let (a, b) = (path.join("a.yaml"), path.join("b.yaml"));
    assert_eq!(
        follower.warned[0],
        format!(
            "Service default/x: is there already, in {}#1; that one counts ({}#1)",
            a.display(),
            b.display()
        )
    );
    fs::write(&b, service("x", 91)).unwrap();
    fs::write(&a, service("x", 81)).unwrap();
    follower.until("the edit", |cache| port(cache, "x") == 81).await;
    assert_eq!((follower.warned.len(), follower.rejected().len()), (1, 1), "no second warning");

    fs::remove_file(&a).unwrap();
    follower.until("the second one", |cache| port(cache, "x") == 91).await;
    assert_eq!(follower.rejected(), [""; 0]);
}

/// What the kubelet does when a mounted ConfigMap changes.
#[tokio::test]
async fn a_mounted_config_map_is_swapped_whole() {
    let (_guard, path) = temp();
    let publish = |version: &str, files: &[(&str, String)]| {
        fs::create_dir(path.join(version)).unwrap();
        for (name, text) in files {
            fs::write(path.join(version).join(name), text).unwrap();
        }
        symlink(version, path.join("..data_tmp")).unwrap();
        fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    };
    publish("..2026_1", &[("a.yaml", service("a", 80)), ("b.yaml", service("b", 80))]);
    symlink("..data/a.yaml", path.join("a.yaml")).unwrap();
    symlink("..data/b.yaml", path.join("b.yaml")).unwrap();
    let mut follower = Follower::new(&path);
    follower.synced().await;
    assert_eq!(follower.names(), ["default/a", "default/b"]);

    publish("..2026_2", &[("a.yaml", service("a", 81)), ("b.yaml", service("b", 81))]);
    follower.until("both", |cache| port(cache, "a") == 81 && port(cache, "b") == 81).await;
    fs::remove_dir_all(path.join("..2026_1")).unwrap();
    follower.settle(&path, "swapped").await;
    assert_eq!(follower.names(), ["default/a", "default/b"]);
}

#[tokio::test]
async fn a_linked_file_is_read_at_once() {
    let (_guard, path) = temp();
    let (_elsewhere, other) = temp();
    fs::write(other.join("soft"), service("soft", 80)).unwrap();
    fs::write(other.join("hard"), service("hard", 80)).unwrap();
    let mut follower = Follower::new(&path);
    follower.synced().await;
    symlink(other.join("soft"), path.join("soft.yaml")).unwrap();
    fs::hard_link(other.join("hard"), path.join("hard.yaml")).unwrap();
    follower.until("both", |cache| port(cache, "soft") == 80 && port(cache, "hard") == 80).await;
    // A link that leads nowhere is no reason to forget what it led to before.
    fs::remove_file(other.join("soft")).unwrap();
    symlink(other.join("soft"), path.join("link")).unwrap();
    fs::rename(path.join("link"), path.join("soft.yaml")).unwrap();
    follower.until("the rejection", |cache| cache.rejected().count() == 1).await;
    assert_eq!((follower.port("soft"), follower.port("hard")), (80, 80));
    fs::remove_file(path.join("soft.yaml")).unwrap();
    follower.until("the link's end", |cache| port(cache, "soft") == 0).await;
    assert_eq!(follower.rejected(), [""; 0]);
}

/// O5: bytes that are no text keep what was known.
#[tokio::test]
async fn an_unreadable_file_keeps_what_was_known() {
    let (_guard, path) = temp();
    fs::write(path.join("a.yaml"), service("a", 80)).unwrap();
    let mut follower = Follower::new(&path);
    follower.synced().await;
    fs::write(path.join("a.yaml"), b"\xff\xfe\x00").unwrap();
    follower.until("the rejection", |cache| cache.rejected().count() == 1).await;
    assert_eq!(follower.port("a"), 80);
    assert!(follower.warned[0].contains("is not UTF-8 text"), "{:?}", follower.warned);
    fs::write(path.join("a.yaml"), "").unwrap();
    follower.until("the empty file", |cache| port(cache, "a") == 0).await;
    assert_eq!(follower.rejected(), [""; 0]);
}

#[tokio::test]
async fn a_missing_directory_is_waited_for() {
    let (_guard, path) = temp();
    let path = path.join("manifests");
    let mut follower = Follower::new(&path);
    let mut status = follower.stream.status();
    let away = status.wait_for(|status| status.last_error.is_some());
    let away = tokio::time::timeout(PATIENCE, away).await.unwrap().unwrap().clone();
    assert!(!away.connected && !away.synced);
    assert!(away.last_error.unwrap().contains("manifests: No such file"));

    // It appears with everything in it.
    let staged = path.with_extension("new");
    fs::create_dir(&staged).unwrap();
    fs::write(staged.join("a.yaml"), service("a", 80)).unwrap();
    fs::rename(&staged, &path).unwrap();
    follower.synced().await;
    assert_eq!(follower.port("a"), 80);
    let here = status.wait_for(|status| status.connected && status.synced);
    let here = tokio::time::timeout(PATIENCE, here).await.unwrap().unwrap().clone();
    assert_eq!(here.last_error, None);
}

/// S32 (the source's part): a directory that goes away takes nothing with it.
#[tokio::test]
async fn a_directory_that_is_replaced_is_listed_again() {
    let (_guard, root) = temp();
    let path = root.join("manifests");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), service("a", 80)).unwrap();
    fs::write(path.join("b.yaml"), service("b", 80)).unwrap();
    let mut follower = Follower::new(&path);
    follower.synced().await;

    let mut status = follower.stream.status();
    fs::rename(&path, root.join("old")).unwrap();
    let away = status.wait_for(|status| !status.connected);
    tokio::time::timeout(PATIENCE, away).await.unwrap().unwrap();
    assert_eq!(follower.names(), ["default/a", "default/b"]);

    let staged = root.join("new");
    fs::create_dir(&staged).unwrap();
    fs::write(staged.join("a.yaml"), service("a", 81)).unwrap();
    fs::rename(&staged, &path).unwrap();
    follower.until("the new list", |cache| port(cache, "a") == 81).await;
    assert_eq!(follower.names(), ["default/a"]);
}

#[tokio::test]
async fn an_appended_document_is_seen() {
    let (_guard, path) = temp();
    fs::write(path.join("a.yaml"), service("a", 80)).unwrap();
    let mut follower = Follower::new(&path);
    follower.synced().await;
    let mut file = OpenOptions::new().append(true).open(path.join("a.yaml")).unwrap();
    write!(file, "---\n{}", service("b", 80)).unwrap();
    drop(file);
    follower.until("the document", |cache| port(cache, "b") == 80).await;
    assert_eq!(follower.port("a"), 80);
}

#[tokio::test]
async fn kinds_that_are_not_asked_for_are_left_out() {
    let (_guard, path) = temp();
    let bad = "---\n{apiVersion: v1, kind: Pod, metadata: {name: p}, status: {podIP: x}}\n";
    fs::write(path.join("a.yaml"), service("a", 80) + bad).unwrap();
    let kinds = BTreeSet::from([ResourceKind::Namespace]);
    let options = SourceOptions { kinds, ..SourceOptions::default() };
    let mut follower = Follower::with(&path, &options);
    follower.settle(&path, "marker").await;
    assert_eq!(follower.names(), [""; 0]);
    assert_eq!(follower.rejected(), [""; 0], "not even looked at");

    let none = SourceOptions { kinds: BTreeSet::new(), ..SourceOptions::default() };
    assert!(matches!(Stream::open(&SourceUrl::Dir(path), &none), Err(SourceError::NoKinds)));
}

/// P11: a policy that is broken does not stay as it was; the file's other objects do.
#[tokio::test]
async fn a_policy_that_is_broken_is_closed_at_once() {
    let (_guard, path) = temp();
    let policy = |types: &str| {
        format!(
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p}}, \
             spec: {{podSelector: {{}}, ingress: [{{}}], policyTypes: {types}}}}}\n"
        )
    };
    fs::write(path.join("a.yaml"), service("a", 80) + &policy("[Ingress]")).unwrap();
    let mut follower = Follower::new(&path);
    let name = ObjectName::new("default", "p");
    let rules = |cache: &Cache| cache.policy(&name).map(|p| p.ingress.as_ref().map_or(0, Vec::len));
    follower.until("the policy", |cache| rules(cache) == Some(1)).await;
    fs::write(path.join("a.yaml"), service("a", 80) + &policy("everything")).unwrap();
    follower.until("the broken policy", |cache| rules(cache) == Some(0)).await;
    assert_eq!(follower.port("a"), 80);
    let rejected = follower.rejected().join(" ");
    assert!(rejected.contains("NetworkPolicy default/p: spec.policyTypes: "), "{rejected}");
    fs::write(path.join("a.yaml"), service("a", 80) + &policy("[Ingress]")).unwrap();
    follower.until("the policy again", |cache| rules(cache) == Some(1)).await;
    assert_eq!(follower.rejected(), [""; 0]);
}
