//! Nothing breaks: the agent dies and comes back, endpoints come and go, and not one request fails.

use anyhow::Context as _;
use rustix::process::Signal;
use sluice_tests::app::LoadReport;
use sluice_tests::load::Load;
use sluice_tests::shop::{Shop, TARGET, WEB_V4, WEB_V6, web_service};
use sluice_tests::{PATIENCE, Result, bin, wait_for};

/// Loads of every kind: a connection for each request, and connections that stay, in both families.
fn loads(shop: &Shop) -> Result<Vec<(&'static str, Load)>> {
    let mut loads = Vec::new();
    for (label, target, keep_alive) in [
        ("new-v4", WEB_V4, false),
        ("new-v6", WEB_V6, false),
        ("kept-v4", WEB_V4, true),
        ("kept-v6", WEB_V6, true),
    ] {
        let mut launch = shop.client.launch(bin("testapp")?);
        launch = launch.args(["load", target, "--rate", "200", "--concurrency", "2"]);
        if keep_alive {
            launch = launch.arg("--keep-alive");
        }
        loads.push((label, Load::new(shop.client.spawn(label, &launch)?)?));
    }
    Ok(loads)
}

fn finish(loads: Vec<(&'static str, Load)>) -> Result<Vec<(&'static str, LoadReport)>> {
    let finish = |(label, load): (&'static str, Load)| {
        Ok((label, load.finish().with_context(|| label.to_owned())?))
    };
    loads.into_iter().map(finish).collect()
}

/// S32
#[test]
fn a_killed_and_restarted_agent_breaks_no_connection_and_loses_no_new_one() -> Result<()> {
    let mut shop = Shop::open()?;
    let loads = loads(&shop)?;
    let source = shop.cluster.source();
    // With load on: killed, away for new connections of every kind, back, stopped in order, back.
    shop.cluster.node_mut(0).kill_agent()?;
    for _ in 0..20 {
        shop.client.get(WEB_V4)?;
        shop.client.udp(WEB_V6.parse()?)?;
        shop.cluster.node(0).get(WEB_V6)?;
    }
    shop.cluster.node_mut(0).start_agent(&source)?;
    for _ in 0..20 {
        shop.client.get(WEB_V4)?;
    }
    shop.cluster.node_mut(0).stop_agent()?;
    shop.client.get(WEB_V6)?;
    shop.cluster.node_mut(0).start_agent(&source)?;
    // The new agent is in charge: it follows a change.
    shop.cluster.apply("web", &web_service().with_endpoints(&[&shop.web[1]]))?;
    wait_for("web-1 alone", PATIENCE, || {
        let alone = |_| shop.client.get(WEB_V4).is_ok_and(|answer| answer.pod == "web-1");
        (0..16).all(alone).then_some(())
    })?;
    finish(loads)?;
    Ok(())
}

/// S32
#[test]
fn an_agent_that_starts_with_a_source_that_says_nothing_removes_no_live_service() -> Result<()> {
    let mut shop = Shop::open()?;
    shop.cluster.node_mut(0).kill_agent()?;
    // Nothing listens there: the list never ends.
    let mut agent = {
        let node = shop.cluster.node(0);
        let launch = node.agent_launch("etcd:http://127.0.0.1:1")?;
        node.spawn("sluiced-blind", &launch)?
    };
    let socket = shop.cluster.node(0).run_dir().join("agent.sock");
    // The file of the killed agent lies there; only a listener accepts.
    agent.wait_until("a control socket", PATIENCE, |_| {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })?;
    for _ in 0..20 {
        shop.client.get(WEB_V4)?;
        shop.cluster.node(0).get(WEB_V6)?;
    }
    assert!(agent.is_running());
    agent.terminate(PATIENCE)?;
    shop.client.get(WEB_V4)?;
    Ok(())
}

#[test]
fn a_rolling_change_of_endpoints_fails_no_request() -> Result<()> {
    let mut shop = Shop::open()?;
    let mut loads = loads(&shop)?;
    // As a Deployment rolls: the new pod is ready, the old one terminates, is taken out, ends after its drain delay.
    for (slot, name) in [(0, "web-2"), (1, "web-3")] {
        let new = shop.cluster.node(slot).add_pod("shop", name)?;
        let server = new.serve(TARGET)?;
        shop.web.push(new);
        shop.servers.push(server);
        let pods: Vec<_> = shop.web.iter().collect();
        shop.cluster.apply("web", &web_service().with_endpoints(&pods))?;
        wait_for("the new pod to answer", PATIENCE, || {
            shop.client.get(WEB_V4).is_ok_and(|answer| answer.pod == name).then_some(())
        })?;
        // All but the oldest are ready.
        let old = shop.web.remove(0);
        let mut old_server = shop.servers.remove(0);
        let mut endpoints: Vec<_> = shop.web.iter().map(|pod| (pod, true)).collect();
        endpoints.push((&old, false));
        let yaml = format!("{}---\n{}", web_service().yaml(), web_service().slices_of(&endpoints));
        shop.cluster.apply("web", &yaml)?;
        wait_for("the old pod to get nothing new", PATIENCE, || {
            let other = |_| shop.client.get(WEB_V4).is_ok_and(|answer| answer.pod != old.name());
            (0..24).all(other).then_some(())
        })?;
        old_server.signal(Signal::TERM)?;
        let status = old_server.wait(PATIENCE)?;
        assert!(status.success(), "{}", old_server.log());
        let pods: Vec<_> = shop.web.iter().collect();
        shop.cluster.apply("web", &web_service().with_endpoints(&pods))?;
        shop.cluster.node(slot).del_pod(old)?;
    }
    for (label, load) in &mut loads {
        // A connection that is kept goes only where the one before it ended.
        let all = if label.starts_with("new") { &["web-2", "web-3"][..] } else { &[] };
        for pod in all {
            load.wait_for_answer_of(pod).with_context(|| (*label).to_owned())?;
        }
    }
    for (label, report) in finish(loads)? {
        assert!(report.backends.len() > 1, "{label} never moved: {report:?}");
    }
    Ok(())
}
