//! Which Node objects a node reads of an API server, and what it learns from them.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use netferry::{
    link::MacAddr,
    network::{
        follow::Members as _,
        members::{Change, Remote},
        nodes::NodePace,
    },
};

use crate::{
    follow::{HERE, Map, Node, claim_on, node, server, set, until},
    support::apiserver::{ApiServer, Fault},
};

/// Nobody is asked for again without a reason.
fn once() -> NodePace {
    let never = Duration::from_hours(9);
    NodePace { refresh: never, own: never, gone: never, fresh: Duration::ZERO, ..NodePace::default() }
}

/// Everybody is asked for again all the time.
fn often() -> NodePace {
    let soon = Duration::from_millis(30);
    NodePace {
        refresh: soon,
        each: Duration::ZERO,
        own: soon,
        gone: soon,
        burst: 1000,
        spacing: Duration::from_millis(1),
        retry: Duration::from_millis(5),
        longest: Duration::from_millis(50),
        ..NodePace::default()
    }
}

/// Nodes that were read, one by one.
fn read(server: &ApiServer) -> BTreeSet<String> {
    let name = |path: &str| path.strip_prefix("/api/v1/nodes/").map(str::to_owned);
    server.asked("GET", "/api/v1/nodes/").iter().filter_map(|request| name(&request.path)).collect()
}

/// How often one was.
fn times(server: &ApiServer, node: &str) -> usize {
    server.asked("GET", &format!("/api/v1/nodes/{node}")).len()
}

fn at(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

async fn reached(node: &Node, host: u8, at: IpAddr) {
    until(&format!("{host} at {at}"), || node.map.node_of(host) == Some(at)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_nodes_with_members_are_read() {
    let server = server().await;
    for number in [0, 2, 3, 4, 5] {
        node(&server, &format!("n{number}"), number);
    }
    claim_on(&server, "n1", ("a", "c"), "blue", Some(11));
    claim_on(&server, "n2", ("b", "c"), "blue", Some(12));
    claim_on(&server, "n3", ("c", "c"), "red", Some(13));
    claim_on(&server, "n4", ("d", "c"), "blue", Some(14));
    let here = Node::paced(&server, once(), Arc::default(), &[]).await;
    // A prepare waits for nodes, too.
    assert!(here.demand.bring(&set(&["blue"])).await, "known");
    assert_eq!(read(&server), set(&[HERE, "n1", "n2"]));
    here.here(&["blue"]);
    here.has(&[11, 12]).await;
    assert_eq!((here.map.node_of(11), here.map.node_of(12)), (Some(at(1)), Some(at(2))));

    claim_on(&server, "n5", ("a", "late"), "blue", Some(15));
    here.has(&[11, 12, 15]).await;
    assert_eq!(read(&server), set(&[HERE, "n1", "n2", "n5"]), "no member is on the others");
    assert!(
        server.requests().iter().all(|request| request.path != "/api/v1/nodes"),
        "nobody lists or watches"
    );
    for name in [HERE, "n1", "n2", "n5"] {
        assert_eq!(times(&server, name), 1, "{name}");
    }
    // What a claim says that was never there: no address of another node.
    claim_on(&server, "n9", ("a", "nowhere"), "blue", Some(19));
    until("n9 is read", || times(&server, "n9") == 2).await;
    assert!(here.demand.bring(&set(&["blue"])).await, "that it is not there is known");
    here.has(&[11, 12, 15]).await;
    here.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_member_has_its_node_read_again() {
    let server = server().await;
    claim_on(&server, "n1", ("a", "c"), "blue", Some(11));
    let here = Node::paced(&server, once(), Arc::default(), &[]).await;
    here.here(&["blue"]);
    reached(&here, 11, at(1)).await;
    // It was replaced under its name.
    node(&server, "n1", 77);
    claim_on(&server, "n1", ("a", "late"), "blue", Some(12));
    reached(&here, 11, at(77)).await;
    reached(&here, 12, at(77)).await;
    let news = server.asked("GET", "/api/v1/nodes/n1").pop().expect("asked");
    assert!(!news.query.contains_key("resourceVersion"), "no cache will do: {news:?}");

    // It is gone, and another claim of it tells.
    server.remove("nodes", "n1");
    claim_on(&server, "n1", ("a", "latest"), "blue", Some(13));
    here.has(&[]).await;
    here.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_followed_without_news() {
    let server = server().await;
    node(&server, HERE, 100);
    node(&server, "n2", 2);
    claim_on(&server, "n1", ("a", "c"), "blue", Some(11));
    claim_on(&server, "n2", ("b", "c"), "blue", Some(12));
    let here = Node::paced(&server, often(), Arc::default(), &[]).await;
    here.here(&["blue"]);
    here.has(&[11, 12]).await;
    let own = || here.table.lock().expect("table").own_address();
    until("the own address", || own() == Some(at(100))).await;
    node(&server, "n1", 77);
    reached(&here, 11, at(77)).await;
    server.remove("nodes", "n1");
    here.has(&[12]).await;
    node(&server, "n1", 78);
    reached(&here, 11, at(78)).await;
    node(&server, HERE, 101);
    until("the own address follows", || own() == Some(at(101))).await;
    server.remove("nodes", HERE);
    until("the own node is gone", || own().is_none()).await;
    assert!(!here.map.lost(12));

    // Without a member nobody reads it any more.
    server.remove("resourceclaims", "b/c");
    here.has(&[11]).await;
    let (before, one) = (times(&server, "n2"), times(&server, "n1"));
    until("others are read", || times(&server, "n1") > one + 5).await;
    // One may have been on its way.
    assert!(times(&server, "n2") <= before + 1);
    here.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_takes_nobody_away() {
    let server = server().await;
    claim_on(&server, "n1", ("a", "c"), "blue", Some(11));
    let here = Node::paced(&server, often(), Arc::default(), &[]).await;
    here.here(&["blue"]);
    reached(&here, 11, at(1)).await;
    for fault in [Fault::Status(500), Fault::Status(503), Fault::Status(429), Fault::Status(403), Fault::Hang]
    {
        server.fail_next("GET", "/api/v1/nodes/", 1000, fault);
        // The node is not there any more, but nobody says so.
        server.remove("nodes", "n1");
        let code = match fault {
            Fault::Status(code) => code,
            _ => 0,
        };
        let failed = || {
            let asked = server.asked("GET", "/api/v1/nodes/n1");
            asked.iter().filter(|request| request.code == code).count()
        };
        until(&format!("{fault:?}"), || failed() >= 3).await;
        assert!(!here.map.lost(11), "{fault:?}");
        node(&server, "n1", 1);
        server.heal();
    }
    // A cache that does not know it yet is not believed.
    let before = times(&server, "n1");
    server.fail_next("GET", "/api/v1/nodes/n1", 1, Fault::Status(404));
    until("it is read", || times(&server, "n1") > before + 4).await;
    assert!(!here.map.lost(11));
    server.remove("nodes", "n1");
    here.has(&[]).await;
    here.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_process_left_stays_until_the_node_answers() {
    let server = server().await;
    claim_on(&server, "n1", ("a", "c"), "blue", Some(11));
    claim_on(&server, "n1", ("a", "other"), "blue", Some(12));
    let map = Arc::<Map>::default();
    let left = |host: u8, mac: u8| Change {
        network: 1,
        address: IpAddr::from([10, 0, 0, host]),
        member: Some(Remote { mac: MacAddr([2, 0, 0, 0, 0, mac]), node: Some(at(200)) }),
    };
    // A member of now, one under whose address another is known, and one that is gone.
    for change in [left(11, 11), left(12, 99), left(13, 13)] {
        map.put(&change).expect("put");
    }
    server.fail_next("GET", "/api/v1/nodes/", 1_000_000, Fault::Status(503));
    let here = Node::paced(&server, often(), map, &["blue"]).await;
    here.has(&[11]).await;
    until("the node is asked for", || times(&server, "n1") > 3).await;
    assert_eq!(here.map.node_of(11), Some(at(200)));
    server.heal();
    reached(&here, 11, at(1)).await;
    reached(&here, 12, at(1)).await;
    assert!(!here.map.lost(11));
    here.end().await;
}
