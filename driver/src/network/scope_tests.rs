use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::network::{
    NetworkRef,
    changeover::{Pace, Watches},
    validate::parse,
};

fn network(name: &str, selector: Option<Value>) -> Arc<Network> {
    let mut spec = json!({"subnets": ["10.0.0.0/24"], "transport": {"overlay": {"vni": 7}}});
    if let Some(selector) = selector {
        spec["namespaceSelector"] = selector;
    }
    let reference = NetworkRef { name: name.to_owned(), uid: name.to_owned() };
    Arc::new(Network { reference, id: 1, spec: parse(&spec).expect("a network") })
}

fn of_team(name: &str, team: &str) -> Arc<Network> {
    network(name, Some(json!({"matchLabels": {"team": team}})))
}

/// Namespaces by name and team.
fn namespaces(all: &[(&str, &str)]) -> Arc<Namespaces> {
    let of = |(name, team): &(&str, &str)| {
        ((*name).to_owned(), BTreeMap::from([("team".to_owned(), (*team).to_owned())]))
    };
    Arc::new(all.iter().map(of).collect())
}

fn names(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

fn of(name: &str) -> Scope {
    Scope::Namespace(name.to_owned())
}

fn word(scope: &Scope) -> String {
    match scope {
        Scope::Cluster => "*".to_owned(),
        Scope::Namespace(name) => name.clone(),
    }
}

/// What is planned, in words: scopes, and the needs.
fn planned(situation: &Situation) -> (String, String) {
    let plan = plan(situation);
    let need = |(name, need): (&String, &Need)| {
        let here = if need.here { "!" } else { "" };
        match &need.admits {
            Admits::All => format!("{name}{here}=*"),
            Admits::Unknown => format!("{name}{here}=?"),
            Admits::Only(only) => {
                format!("{name}{here}={}", only.iter().cloned().collect::<Vec<_>>().join("+"))
            }
        }
    };
    let scopes: Vec<_> = plan.claims.iter().map(word).collect();
    let needs: Vec<_> = plan.needs.iter().map(need).collect();
    (scopes.join(" "), needs.join(" "))
}

#[test]
fn a_node_watches_the_namespaces_that_may_join_what_it_needs() {
    let mut situation = Situation {
        networks: vec![
            of_team("blue", "a"),
            of_team("red", "b"),
            of_team("grey", "c"),
            network("shut", None),
            network("open", Some(json!({}))),
        ],
        namespaces: Some(namespaces(&[("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c")])),
        ..Situation::default()
    };
    let word = |scopes: &str, needs: &str| (scopes.to_owned(), needs.to_owned());
    assert_eq!(planned(&situation), word("", ""), "no port, no watch");
    assert_eq!(plan(&situation), Plan::default());

    situation.here = names(&["blue", "shut", "gone"]);
    assert_eq!(planned(&situation), word("a1 a2", "blue!=a1+a2 shut!="));
    assert!(plan(&situation).namespaces);
    situation.also = names(&["red", "blue"]);
    assert_eq!(planned(&situation), word("a1 a2 b1", "blue!=a1+a2 red=b1 shut!="));
    // Labels that are not known let nobody in.
    let known = situation.namespaces.take();
    assert_eq!(planned(&situation), word("", "blue!=? red=? shut!="));
    situation.namespaces = known;
    // The elected node knows every claim, and counts as members whom its neighbours do.
    situation.leads = true;
    assert_eq!(planned(&situation), word("*", "blue!=a1+a2 red=b1 shut!="));
    situation.leads = false;
    situation.here.insert("open".to_owned());
    assert_eq!(planned(&situation), word("*", "blue!=a1+a2 open!=* red=b1 shut!="));
    // What takes all, or none, does not ask for labels.
    (situation.here, situation.also) = (names(&["open", "shut"]), names(&[]));
    assert!(!plan(&situation).namespaces);
}

#[test]
fn too_many_namespaces_are_watched_as_one() {
    let all: Vec<String> = (0..=MAX_NAMESPACES).map(|number| format!("n{number:02}")).collect();
    let situation = |count: usize| Situation {
        networks: vec![of_team("blue", "a")],
        here: names(&["blue"]),
        namespaces: Some(namespaces(
            &all[..count].iter().map(|name| (name.as_str(), "a")).collect::<Vec<_>>(),
        )),
        ..Situation::default()
    };
    assert_eq!(plan(&situation(MAX_NAMESPACES)).claims.len(), MAX_NAMESPACES);
    assert_eq!(plan(&situation(MAX_NAMESPACES + 1)).claims, BTreeSet::from([Scope::Cluster]));
}

#[test]
fn one_watch_takes_the_place_of_another_when_its_list_has_settled() {
    let pace = Pace { linger: Duration::from_mins(5), settle: Duration::from_secs(30) };
    let start = Instant::now();
    let mut watches = Watches::default();
    let scopes = |words: &str| -> BTreeSet<Scope> {
        words.split_whitespace().map(|word| if word == "*" { Scope::Cluster } else { of(word) }).collect()
    };
    // What is wanted, and whose lists are whole: what begins and what ends.
    let mut step = |wanted: &str, listed: &str, second: u64| {
        let (wanted, listed) = (scopes(wanted), scopes(listed));
        let now = start + Duration::from_secs(second);
        let steps = watches.step(&wanted, |scope| listed.contains(scope), now, pace);
        let words = |scopes: &[Scope]| scopes.iter().map(word).collect::<Vec<_>>().join(" ");
        let [open, close] = [steps.open, steps.close].map(|scopes| words(&scopes));
        format!("+{open} -{close}")
    };
    assert_eq!(step("a b", "", 0), "+a b -");
    // Nothing takes the place of a namespace that is not needed any more.
    assert_eq!(step("a", "", 1), "+ -b");
    assert_eq!(step("a", "a", 2), "+ -");

    assert_eq!(step("*", "a", 10), "+* -");
    assert_eq!(step("*", "a", 100), "+ -", "its list is not whole");
    assert_eq!(step("*", "a *", 101), "+ -");
    // It breaks, and lists again: the time begins anew.
    assert_eq!(step("*", "a", 120), "+ -");
    assert_eq!(step("*", "a *", 121), "+ -");
    assert_eq!(step("*", "a *", 150), "+ -");
    assert_eq!(step("*", "a *", 151), "+ -a");

    // Not needed any more, it stays for a while, and namespaces need no watch of theirs.
    assert_eq!(step("a", "*", 160), "+ -");
    assert_eq!(step("a b", "*", 450), "+ -");
    assert_eq!(step("a b", "*", 451), "+a b -");
    assert_eq!(step("a b", "a b *", 460), "+ -");
    assert_eq!(step("a", "a b *", 489), "+ -b");
    assert_eq!(step("a", "a *", 490), "+ -*");
    assert_eq!(step("", "a", 491), "+ -a");
}
