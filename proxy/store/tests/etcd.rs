//! A real etcd, followed through restarts, broken connections, compaction and loss of its data.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use etcd_client::{Client, CompactionOptions, Txn, TxnOp};
use sluice_model::ObjectName;
use sluice_store::{Cache, EtcdOptions, Event, SourceOptions, SourceStatus, SourceUrl, Stream};
use support::{Etcd, Proxy};

/// Long enough for the slowest machine; no test waits for it unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cache that follows an etcd.
struct Follower {
    stream: Stream,
    cache: Cache,
    /// How many lists have begun.
    lists: usize,
}

impl Follower {
    fn new(endpoints: &str) -> Self {
        Self::with(endpoints, EtcdOptions::default())
    }

    fn with(endpoints: &str, etcd: EtcdOptions) -> Self {
        let url: SourceUrl = format!("etcd:{endpoints}").parse().unwrap();
        let options = SourceOptions { etcd, ..SourceOptions::default() };
        let stream = Stream::open(&url, &options).unwrap();
        Self { stream, cache: Cache::new(), lists: 0 }
    }

    /// Follows until the cache is as expected.
    async fn until(&mut self, what: &str, expected: impl Fn(&Cache) -> bool) {
        let follow = async {
            while !expected(&self.cache) {
                let batch = self.stream.next_batch().await.expect("the source never ends");
                self.lists += batch.iter().filter(|event| **event == Event::Init).count();
                self.cache.ingest(batch);
            }
        };
        if tokio::time::timeout(PATIENCE, follow).await.is_err() {
            panic!("never seen: {what}; {:?}", *self.stream.status().borrow());
        }
    }

    /// Waits for a status, while nothing is read.
    async fn status(
        &self,
        what: &str,
        expected: impl FnMut(&SourceStatus) -> bool,
    ) -> SourceStatus {
        let mut status = self.stream.status();
        match tokio::time::timeout(PATIENCE, status.wait_for(expected)).await {
            Ok(status) => status.unwrap().clone(),
            Err(_) => panic!("never seen: {what}; {:?}", *self.stream.status().borrow()),
        }
    }

    fn namespaces(&self) -> Vec<String> {
        self.cache.namespaces().map(|namespace| namespace.meta.name.to_string()).collect()
    }
}

fn namespace(name: &str) -> (String, String) {
    let value =
        format!(r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{name}"}}}}"#);
    (format!("/registry/namespaces/{name}"), value)
}

async fn put(client: &mut Client, name: &str) {
    let (key, value) = namespace(name);
    client.put(key, value, None).await.unwrap();
}

fn sample(name: &str) -> (String, Vec<u8>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/etcd").join(name);
    let key = name.strip_suffix(".pb").unwrap().replace("__", "/");
    (format!("/registry/{key}"), fs::read(file).unwrap())
}

#[tokio::test]
async fn an_etcd_is_listed_and_watched() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    for file in [
        "services__specs__shop__web.pb",
        "services__specs__shop__db.pb",
        "endpointslices__shop__web-x1.pb",
        "endpointslices__shop__web-x6.pb",
        "pods__shop__db-0.pb",
        "minions__node-b.pb",
        "namespaces__shop.pb",
    ] {
        let (key, value) = sample(file);
        client.put(key, value, None).await.unwrap();
    }
    put(&mut client, "json").await;
    // Beside what is watched.
    client.put("/registry/configmaps/shop/x", "7", None).await.unwrap();
    client.put("/registry/services/endpoints/shop/web", "7", None).await.unwrap();
    let mut follower = Follower::new(&etcd.url());
    follower.until("the list", Cache::synced).await;
    assert_eq!(follower.namespaces(), ["json", "shop"]);
    let (web, db) = (ObjectName::new("shop", "web"), ObjectName::new("shop", "db"));
    assert_eq!(follower.cache.endpoints(&web).len(), 3, "of two slices");
    let derived = follower.cache.endpoints(&db);
    assert_eq!(derived.len(), 1, "of the one pod, in the family of the Service");
    assert_eq!(derived[0].zone.as_deref(), Some("z2"));
    assert_eq!(follower.cache.rejected().count(), 0);
    let status = follower.status("the list", |status| status.synced && status.connected).await;
    assert!(status.revision >= Some(10) && status.last_error.is_none(), "{status:?}");

    put(&mut client, "new").await;
    follower.until("a put", |cache| cache.has_namespace("new")).await;
    client.delete("/registry/services/specs/shop/web", None).await.unwrap();
    follower.until("a deletion", |cache| cache.service(&web).is_none()).await;
    let (key, value) = sample("services__specs__shop__web.pb");
    client.put(key.as_str(), value.clone(), None).await.unwrap();
    follower.until("its return", |cache| cache.service(&web).is_some()).await;

    // O5: what is wrong is named, keeps what was known, and goes when it is right again.
    client.put(key.as_str(), &value[..100], None).await.unwrap();
    follower.until("the rejection", |cache| cache.rejected().count() == 1).await;
    let message = follower.cache.rejected().next().unwrap().to_string();
    assert!(message.starts_with("Service shop/web: the value is damaged protobuf"), "{message}");
    assert!(message.ends_with("(/registry/services/specs/shop/web)"), "{message}");
    assert!(follower.cache.service(&web).is_some());
    client.put(key, value, None).await.unwrap();
    follower.until("the repair", |cache| cache.rejected().count() == 0).await;
    assert_eq!(follower.lists, 1);
}

/// P9, P11: a policy comes, is closed at once when its value is damaged, and goes.
#[tokio::test]
async fn a_network_policy_is_followed_and_never_left_as_it_was() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let (key, value) = sample("networkpolicies__shop__db-from-web.pb");
    let name = ObjectName::new("shop", "db-from-web");
    let rules = |cache: &Cache| {
        let policy = cache.policy(&name)?;
        Some((policy.ingress.as_ref()?.len(), policy.faults.len()))
    };
    client.put(key.as_str(), &value[..100], None).await.unwrap();
    let mut follower = Follower::new(&etcd.url());
    follower.until("the list", Cache::synced).await;
    assert_eq!(rules(&follower.cache), Some((0, 1)), "closed, though it was never read");
    client.put(key.as_str(), value.clone(), None).await.unwrap();
    follower.until("the policy", |cache| rules(cache) == Some((1, 0))).await;
    assert_eq!(follower.cache.rejected().count(), 0);
    client.put(key.as_str(), &value[..100], None).await.unwrap();
    follower.until("the damage", |cache| rules(cache) == Some((0, 1))).await;
    // Told after it is in force, and perhaps in the next batch.
    follower.until("the rejection", |cache| cache.rejected().count() == 1).await;
    let message = follower.cache.rejected().next().unwrap().to_string();
    assert!(message.starts_with("NetworkPolicy shop/db-from-web: the value is"), "{message}");
    client.delete(key, None).await.unwrap();
    follower.until("the deletion", |cache| cache.policies().count() == 0).await;
    assert_eq!((follower.cache.rejected().count(), follower.lists), (0, 1));
}

#[tokio::test]
async fn a_long_list_comes_in_pages_of_one_revision() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let names: Vec<String> = (0..1234).map(|i| format!("n{i:04}")).collect();
    for chunk in names.chunks(100) {
        let puts: Vec<TxnOp> = chunk
            .iter()
            .map(|name| {
                let (key, value) = namespace(name);
                TxnOp::put(key, value, None)
            })
            .collect();
        client.txn(Txn::new().and_then(puts)).await.unwrap();
    }
    let mut follower = Follower::new(&etcd.url());
    follower.until("the list", Cache::synced).await;
    assert_eq!(follower.namespaces(), names);
    // A revision of many events, as `kubectl delete namespace` may cause.
    let deletions: Vec<TxnOp> =
        names[..100].iter().map(|name| TxnOp::delete(namespace(name).0, None)).collect();
    client.txn(Txn::new().and_then(deletions)).await.unwrap();
    follower.until("the deletions", |cache| cache.namespaces().count() == 1134).await;
}

/// O1: after a broken connection the watch goes on where it was: what happened meanwhile arrives, and
/// nothing is listed again.
#[tokio::test]
async fn a_watch_resumes_where_the_connection_broke() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    put(&mut client, "a").await;
    put(&mut client, "b").await;
    let mut proxy = Proxy::start(etcd.port()).await;
    let mut follower = Follower::new(&proxy.url());
    follower.until("the list", Cache::synced).await;
    put(&mut client, "c").await;
    follower.until("an event", |cache| cache.has_namespace("c")).await;

    proxy.cut();
    let away = follower.status("the loss", |status| !status.connected).await;
    assert!(away.synced && away.last_error.is_some(), "{away:?}");
    put(&mut client, "d").await;
    client.delete("/registry/namespaces/a", None).await.unwrap();
    assert_eq!(follower.namespaces(), ["a", "b", "c"], "an etcd that is away takes nothing away");
    proxy.restore().await;
    follower
        .until("what happened meanwhile", |cache| {
            cache.has_namespace("d") && !cache.has_namespace("a")
        })
        .await;
    assert_eq!(follower.lists, 1);
    let back = follower.status("the return", |status| status.connected).await;
    assert_eq!(back.last_error, None);
}

/// O1: where the history is compacted, everything is listed again, and only what differs changes.
#[tokio::test]
async fn compaction_while_away_leads_to_a_new_list() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    put(&mut client, "a").await;
    put(&mut client, "b").await;
    let mut proxy = Proxy::start(etcd.port()).await;
    let mut follower = Follower::new(&proxy.url());
    follower.until("the list", Cache::synced).await;

    proxy.cut();
    follower.status("the loss", |status| !status.connected).await;
    client.delete("/registry/namespaces/a", None).await.unwrap();
    put(&mut client, "c").await;
    put(&mut client, "c").await;
    let revision = client.get("x", None).await.unwrap().header().unwrap().revision();
    let physical = CompactionOptions::new().with_physical();
    client.compact(revision, Some(physical)).await.unwrap();
    put(&mut client, "d").await;
    proxy.restore().await;
    follower.until("the new list", |cache| cache.has_namespace("d")).await;
    assert_eq!(follower.namespaces(), ["b", "c", "d"]);
    assert_eq!(follower.lists, 2);
    // And it is watched from there.
    put(&mut client, "e").await;
    follower.until("an event", |cache| cache.has_namespace("e")).await;
    assert_eq!(follower.lists, 2);
}

/// O1: etcd is killed and comes back with its data.
#[tokio::test]
async fn a_restarted_etcd_is_followed_on() {
    let mut etcd = Etcd::start().await;
    put(&mut etcd.client().await, "a").await;
    let mut follower = Follower::new(&etcd.url());
    follower.until("the list", Cache::synced).await;
    etcd.kill();
    follower.status("the loss", |status| !status.connected).await;
    etcd.restart().await;
    put(&mut etcd.client().await, "b").await;
    follower.until("an event", |cache| cache.has_namespace("b")).await;
    assert_eq!(follower.lists, 1);
}

/// O1: etcd comes back without its data, or with an old copy of it: its revision goes back.
#[tokio::test]
async fn an_etcd_that_lost_its_data_is_listed_again() {
    let mut etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    for name in ["a", "b", "c", "d"] {
        put(&mut client, name).await;
    }
    let mut follower = Follower::new(&etcd.url());
    follower.until("the list", Cache::synced).await;
    etcd.kill();
    etcd.wipe();
    etcd.restart().await;
    put(&mut etcd.client().await, "b").await;
    follower.until("the new list", |cache| !cache.has_namespace("a")).await;
    follower.until("what is there", |cache| cache.has_namespace("b")).await;
    assert_eq!(follower.namespaces(), ["b"]);
    assert_eq!(follower.lists, 2);
    put(&mut etcd.client().await, "e").await;
    follower.until("an event", |cache| cache.has_namespace("e")).await;
}

#[tokio::test]
async fn an_etcd_that_is_away_at_the_start_is_waited_for() {
    let mut etcd = Etcd::start().await;
    put(&mut etcd.client().await, "a").await;
    etcd.kill();
    let mut follower = Follower::new(&etcd.url());
    let away = follower.status("the error", |status| status.last_error.is_some()).await;
    assert!(!away.connected && !away.synced);
    let error = away.last_error.unwrap();
    assert!(error.starts_with(&etcd.url()) && error.contains("refused"), "{error}");
    etcd.restart().await;
    follower.until("the list", Cache::synced).await;
    assert_eq!(follower.namespaces(), ["a"]);
}

/// O1: another member takes over from one that refuses connections, or that falls silent.
#[tokio::test]
async fn another_endpoint_takes_over() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    put(&mut client, "a").await;
    let mut dead = Proxy::start(etcd.port()).await;
    dead.cut();
    let hung = Proxy::start(etcd.port()).await;
    let mut follower = Follower::new(&format!("{},{},{}", dead.url(), hung.url(), etcd.url()));
    follower.until("the list", Cache::synced).await;
    let connected = |status: &SourceStatus| status.connected;
    follower.status("the second endpoint", connected).await;

    // The connection stays open and nothing comes through any more.
    hung.freeze();
    follower.status("the silence", |status| !status.connected).await;
    put(&mut client, "b").await;
    follower.until("the third endpoint", |cache| cache.has_namespace("b")).await;
    assert_eq!(follower.lists, 1, "the third goes on where the second ended");
}

/// O1: authentication.
#[tokio::test]
async fn a_user_and_password_are_honoured() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    put(&mut client, "a").await;
    client.user_add("root", "secret", None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    let user = |password: &str| EtcdOptions {
        user: Some("root".to_owned()),
        password: Some(password.to_owned()),
        ..EtcdOptions::default()
    };
    let mut follower = Follower::with(&etcd.url(), user("secret"));
    follower.until("the list", Cache::synced).await;
    assert_eq!(follower.namespaces(), ["a"]);

    for options in [user("wrong"), EtcdOptions::default()] {
        let refused = Follower::with(&etcd.url(), options);
        let status = refused.status("the refusal", |status| status.last_error.is_some()).await;
        let error = status.last_error.unwrap();
        assert!(
            error.contains("authentication failed") || error.contains("user name is empty"),
            "{error}"
        );
    }
}

/// O1: TLS, with a certificate of the client's as well.
#[tokio::test]
async fn tls_with_certificates_on_both_sides() {
    let etcd = Etcd::start_tls().await;
    let certificates = etcd.certificates();
    let options = EtcdOptions {
        ca: Some(certificates.join("ca.pem")),
        cert: Some(certificates.join("client.pem")),
        key: Some(certificates.join("client.key")),
        ..EtcdOptions::default()
    };
    let mut follower = Follower::with(&etcd.url(), options.clone());
    follower.until("the list", Cache::synced).await;
    assert!(etcd.url().starts_with("https://"));

    let anonymous = EtcdOptions { cert: None, key: None, ..options.clone() };
    let refused = Follower::with(&etcd.url(), anonymous);
    let status = refused.status("the refusal", |status| status.last_error.is_some()).await;
    assert!(!status.synced);

    let distrust = EtcdOptions { ca: Some(certificates.join("other.pem")), ..options };
    let refused = Follower::with(&etcd.url(), distrust);
    let status = refused.status("the distrust", |status| status.last_error.is_some()).await;
    let error = status.last_error.unwrap();
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test]
async fn options_that_can_never_work_are_errors() {
    let url: SourceUrl = "etcd:https://127.0.0.1:1".parse().unwrap();
    let open = |etcd: EtcdOptions| {
        let options = SourceOptions { etcd, ..SourceOptions::default() };
        Stream::open(&url, &options).unwrap_err()
    };
    let missing = Some("/nonexistent/ca.pem".into());
    let rows = [
        (EtcdOptions::default(), "https://127.0.0.1:1 needs the certificate authority"),
        (
            EtcdOptions { ca: missing.clone(), ..EtcdOptions::default() },
            "cannot read --etcd-cacert /nonexistent/ca.pem: No such file",
        ),
        (
            EtcdOptions { ca: missing.clone(), cert: missing.clone(), ..EtcdOptions::default() },
            "only --etcd-cert is given",
        ),
        (
            EtcdOptions { ca: missing, user: Some("u".to_owned()), ..EtcdOptions::default() },
            "only the user is given",
        ),
    ];
    for (options, message) in rows {
        let error = open(options);
        assert!(error.to_string().contains(message), "{error}");
        assert!(!error.hint().is_empty());
    }
}
