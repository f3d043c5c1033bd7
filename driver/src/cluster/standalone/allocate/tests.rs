#![allow(clippy::needless_pass_by_value, reason = "json!() in a call reads better without a borrow")]

use serde_json::{Value, json};

use super::*;

fn slices(devices: Value) -> Vec<ResourceSlice> {
    vec![slice(1, 1, devices)]
}

fn slice(generation: i64, count: i64, devices: Value) -> ResourceSlice {
    serde_json::from_value(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {},
        "spec": {"driver": "netferry.dev", "nodeName": "n1", "devices": devices,
                 "pool": {"name": "n1", "generation": generation, "resourceSliceCount": count}}
    }))
    .expect("slice")
}

fn link(name: &str, mtu: i64, numa: i64) -> Value {
    json!({"name": name, "attributes": {"netferry.dev/mtu": {"int": mtu}, "netferry.dev/numaNode": {"int": numa}}})
}

fn claim(devices: Value) -> ResourceClaim {
    serde_json::from_value(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": "c", "namespace": "d"}, "spec": {"devices": devices}
    }))
    .expect("claim")
}

fn classes() -> BTreeMap<String, DeviceClass> {
    let class = |name: &str, spec: Value| {
        let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass",
            "metadata": {"name": name}, "spec": spec});
        (name.to_owned(), serde_json::from_value(class).expect("class"))
    };
    let opaque = |mtu: u32| json!({"opaque": {"driver": "netferry.dev", "parameters": {"mtu": mtu}}});
    BTreeMap::from([
        class(
            "net",
            json!({"selectors": [{"cel": {"expression": "device.driver == 'netferry.dev'"}}],
            "config": [opaque(1)]}),
        ),
        class(
            "jumbo",
            json!({"selectors": [{"cel": {"expression": "device.attributes['netferry.dev'].mtu >= 9000"}}]}),
        ),
    ])
}

fn run(
    claim: &ResourceClaim,
    slices: &[ResourceSlice],
    taken: &Taken,
) -> Result<AllocationResult, AllocateError> {
    let classes = classes();
    let question = Question { claim, classes: &classes, slices, driver: "netferry.dev", node: "n1", taken };
    let allocation = allocate(&question)?;
    assert_eq!(allocate(&question).expect("again"), allocation, "the same question has the same answer");
    Ok(allocation)
}

fn given(allocation: &AllocationResult) -> Vec<(String, String)> {
    let results = allocation.devices.as_ref().and_then(|devices| devices.results.as_ref()).expect("results");
    results.iter().map(|result| (result.request.clone(), result.device.clone())).collect()
}

fn pairs(wanted: &[(&str, &str)]) -> Vec<(String, String)> {
    wanted.iter().map(|(request, device)| ((*request).to_owned(), (*device).to_owned())).collect()
}

fn taken(devices: &[&str]) -> Taken {
    let share = || vec![Share { claim: "d/other".to_owned(), consumed: BTreeMap::new() }];
    devices.iter().map(|device| (("n1".to_owned(), (*device).to_owned()), share())).collect()
}

fn one(exactly: Value) -> ResourceClaim {
    claim(json!({"requests": [{"name": "r", "exactly": exactly}]}))
}

#[test]
fn class_and_request_select_and_what_is_taken_is_left() {
    let slices = slices(json!([link("a", 1500, 0), link("b", 9000, 0), link("c", 9000, 1)]));
    let jumbo = one(json!({"deviceClassName": "jumbo"}));
    assert_eq!(given(&run(&jumbo, &slices, &taken(&[])).expect("free")), pairs(&[("r", "b")]));
    assert_eq!(given(&run(&jumbo, &slices, &taken(&["b"])).expect("free")), pairs(&[("r", "c")]));
    let error = run(&jumbo, &slices, &taken(&["b", "c"])).expect_err("all taken").to_string();
    assert!(
        error.contains("2 fit, 0 of them free") && error.contains("b belongs to claim d/other"),
        "{error}"
    );
    let numa = one(json!({"deviceClassName": "jumbo", "selectors":
        [{"cel": {"expression": "device.attributes['netferry.dev'].numaNode == 1"}}]}));
    assert_eq!(given(&run(&numa, &slices, &taken(&[])).expect("free")), pairs(&[("r", "c")]));
}

#[test]
fn count_and_all() {
    let slices = slices(json!([link("a", 1500, 0), link("b", 9000, 0), link("c", 9000, 1)]));
    let two = one(json!({"deviceClassName": "net", "count": 2}));
    assert_eq!(given(&run(&two, &slices, &taken(&["a"])).expect("two")), pairs(&[("r", "b"), ("r", "c")]));
    assert!(matches!(run(&two, &slices, &taken(&["a", "b"])), Err(AllocateError::Unsatisfied { .. })));
    let all = one(json!({"deviceClassName": "jumbo", "allocationMode": "All"}));
    assert_eq!(given(&run(&all, &slices, &taken(&["a"])).expect("all")), pairs(&[("r", "b"), ("r", "c")]));
    assert!(matches!(run(&all, &slices, &taken(&["b"])), Err(AllocateError::Unsatisfied { .. })));
    let none = self::slices(json!([link("a", 1500, 0)]));
    assert!(matches!(run(&all, &none, &taken(&[])), Err(AllocateError::Unsatisfied { .. })));
}

#[test]
fn a_greedy_choice_is_taken_back() {
    // The first request must not keep the only device that the second one can use.
    let slices = slices(json!([link("a", 9000, 0), link("b", 1500, 0)]));
    let claim = claim(json!({"requests": [
        {"name": "any", "exactly": {"deviceClassName": "net"}},
        {"name": "big", "exactly": {"deviceClassName": "jumbo"}}]}));
    let given = given(&run(&claim, &slices, &taken(&[])).expect("both"));
    assert_eq!(given, pairs(&[("any", "b"), ("big", "a")]));
}

#[test]
fn constraints_hold() {
    let slices = slices(json!([link("a", 1500, 0), link("b", 1500, 1), link("c", 1500, 1)]));
    let two = |constraint: Value| {
        claim(json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "net", "count": 2}}],
            "constraints": [constraint]}))
    };
    let same =
        run(&two(json!({"matchAttribute": "netferry.dev/numaNode"})), &slices, &taken(&[])).expect("same");
    assert_eq!(given(&same), pairs(&[("r", "b"), ("r", "c")]));
    let distinct = two(json!({"distinctAttribute": "netferry.dev/numaNode"}));
    assert_eq!(
        given(&run(&distinct, &slices, &taken(&[])).expect("distinct")),
        pairs(&[("r", "a"), ("r", "b")])
    );
    let unknown = two(json!({"matchAttribute": "netferry.dev/nothing"}));
    assert!(matches!(run(&unknown, &slices, &taken(&[])), Err(AllocateError::Unsatisfied { .. })));
}

#[test]
fn the_first_available_alternative_wins_and_brings_its_configuration() {
    let opaque = |mtu: u32| json!({"driver": "netferry.dev", "parameters": {"mtu": mtu}});
    let claim = claim(json!({
        "requests": [{"name": "r", "firstAvailable": [
            {"name": "big", "deviceClassName": "jumbo"}, {"name": "any", "deviceClassName": "net"}]}],
        "config": [{"requests": ["r/big"], "opaque": opaque(2)}, {"requests": ["r/any"], "opaque": opaque(3)},
                   {"requests": ["r"], "opaque": opaque(4)}, {"opaque": opaque(5)}]
    }));
    let summary = |allocation: &AllocationResult| -> Vec<(String, Option<Vec<String>>, Value)> {
        let config =
            allocation.devices.as_ref().and_then(|devices| devices.config.clone()).unwrap_or_default();
        let one = |config: DeviceAllocationConfiguration| {
            (config.source, config.requests, config.opaque.expect("opaque").parameters.0["mtu"].clone())
        };
        config.into_iter().map(one).collect()
    };
    let entry = |source: &str, request: Option<&str>, mtu: u32| {
        (source.to_owned(), request.map(|request| vec![request.to_owned()]), json!(mtu))
    };
    let only_small = slices(json!([link("a", 1500, 0)]));
    let allocation = run(&claim, &only_small, &taken(&[])).expect("any");
    assert_eq!(given(&allocation), pairs(&[("r/any", "a")]));
    assert_eq!(
        summary(&allocation),
        [
            entry("FromClass", Some("r/any"), 1),
            entry("FromClaim", Some("r/any"), 3),
            entry("FromClaim", Some("r"), 4),
            entry("FromClaim", None, 5)
        ]
    );
    let both = slices(json!([link("a", 1500, 0), link("b", 9000, 0)]));
    let allocation = run(&claim, &both, &taken(&[])).expect("big");
    assert_eq!(given(&allocation), pairs(&[("r/big", "b")]));
    assert_eq!(summary(&allocation)[0], entry("FromClaim", Some("r/big"), 2), "class jumbo has none");
}

#[test]
fn admin_access_sees_taken_devices_and_takes_none() {
    let slices = slices(json!([link("a", 1500, 0)]));
    let admin = one(json!({"deviceClassName": "net", "adminAccess": true, "allocationMode": "All"}));
    let allocation = run(&admin, &slices, &taken(&["a"])).expect("admin");
    assert_eq!(given(&allocation), pairs(&[("r", "a")]));
    let results = allocation.devices.and_then(|devices| devices.results).expect("results");
    assert_eq!(results[0].admin_access, Some(true));
}

#[test]
fn taints_keep_away_until_tolerated() {
    let mut device = link("a", 1500, 0);
    device["taints"] = json!([{"key": "netferry.dev/held", "value": "x", "effect": "NoSchedule"}]);
    let slices = slices(json!([device]));
    let plain = one(json!({"deviceClassName": "net"}));
    assert!(matches!(run(&plain, &slices, &taken(&[])), Err(AllocateError::Unsatisfied { .. })));
    for (toleration, enough) in [
        (json!({"key": "netferry.dev/held", "operator": "Exists"}), true),
        (json!({"operator": "Exists"}), true),
        (json!({"key": "netferry.dev/held", "operator": "Equal", "value": "x"}), true),
        (json!({"key": "netferry.dev/held", "operator": "Equal", "value": "y"}), false),
        (json!({"key": "netferry.dev/held", "operator": "Exists", "effect": "NoExecute"}), false),
    ] {
        let claim = one(json!({"deviceClassName": "net", "tolerations": [toleration]}));
        assert_eq!(run(&claim, &slices, &taken(&[])).is_ok(), enough, "{toleration}");
    }
}

#[test]
fn only_a_whole_pool_of_the_newest_generation_counts() {
    let plain = one(json!({"deviceClassName": "net"}));
    let half = [slice(2, 2, json!([link("a", 1500, 0)]))];
    assert!(run(&plain, &half, &taken(&[])).is_err());
    let old_and_new = [slice(1, 1, json!([link("a", 1500, 0)])), slice(2, 1, json!([link("b", 1500, 0)]))];
    assert_eq!(given(&run(&plain, &old_and_new, &taken(&[])).expect("new")), pairs(&[("r", "b")]));
}

#[test]
fn errors_name_the_field_and_what_is_allowed() {
    let slices = slices(json!([link("a", 1500, 0)]));
    for (exactly, wanted) in [
        (
            json!({"deviceClassName": "nope"}),
            "requests[0].exactly.deviceClassName: there is no DeviceClass \"nope\"",
        ),
        (json!({"deviceClassName": "net", "count": 0}), "exactly.count: 0 is not allowed; allowed: 1 to 32"),
        (json!({"deviceClassName": "net", "allocationMode": "Some"}), "exactly.allocationMode: \"Some\""),
        (
            json!({"deviceClassName": "net", "selectors": [{"cel": {"expression": "device."}}]}),
            "exactly.selectors[0].cel.expression: \"device.\" is no device selector",
        ),
        (
            json!({"deviceClassName": "net", "selectors": [{"cel": {"expression": "device.attributes['x'].y"}}]}),
            "fails on device \"a\"",
        ),
        (
            json!({"deviceClassName": "net", "capacity": {"requests": {"ports": "many"}}}),
            "exactly.capacity.requests[ports]: \"many\" is not a quantity",
        ),
    ] {
        let error = run(&one(exactly), &slices, &taken(&[])).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_hard_claim_ends() {
    let devices: Vec<Value> = (0..64).map(|index| link(&format!("d{index:02}"), 1500, index)).collect();
    let slices = slices(json!(devices));
    let claim = claim(json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "net", "count": 32}},
        {"name": "s", "exactly": {"deviceClassName": "jumbo"}}]}));
    assert!(matches!(run(&claim, &slices, &taken(&[])), Err(AllocateError::Unsatisfied { .. })));
}

/// A network's port on this node, and two addresses of each of two networks.
fn networks() -> Vec<ResourceSlice> {
    let name = |network: &str| json!({"network": {"string": network}});
    let port = |network: &str, ports: &str| {
        json!({"name": format!("port-{network}"), "attributes": name(network), "allowMultipleAllocations": true,
            "capacity": {"ports": {"value": ports, "requestPolicy": {"default": "1", "validValues": ["1"]}}}})
    };
    let addresses = |network: &str| {
        let device = |last: u8| json!({"name": format!("ip-10-0-0-{last}"), "attributes": name(network)});
        serde_json::from_value(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {},
            "spec": {"driver": "netferry.dev", "allNodes": true, "devices": [device(1), device(2)],
                     "pool": {"name": format!("networks/{network}"), "generation": 1, "resourceSliceCount": 1}}
        }))
        .expect("slice")
    };
    let mut all = slices(json!([port("blue", "3"), port("red", "1k"), link("eth1", 1500, 0)]));
    all.extend([addresses("red"), addresses("blue")]);
    all
}

fn results_of(allocation: &AllocationResult) -> Vec<DeviceRequestAllocationResult> {
    allocation.devices.clone().and_then(|devices| devices.results).expect("results")
}

#[test]
fn a_port_and_an_address_of_one_network() {
    let guarded = |rest: &str| json!([{"cel": {"expression": format!("'network' in device.attributes['netferry.dev'] && {rest}")}}]);
    let claim = claim(json!({
        "requests": [
            {"name": "port", "exactly": {"deviceClassName": "net",
                "selectors": guarded("device.attributes['netferry.dev'].network == 'red' && \
                    device.allowMultipleAllocations")}},
            {"name": "address", "exactly": {"deviceClassName": "net",
                "selectors": guarded("!device.allowMultipleAllocations")}},
        ],
        "constraints": [{"requests": ["port", "address"], "matchAttribute": "netferry.dev/network"}],
    }));
    let allocation = run(&claim, &networks(), &Taken::new()).expect("allocated");
    assert_eq!(given(&allocation), pairs(&[("port", "port-red"), ("address", "ip-10-0-0-1")]));
    let results = results_of(&allocation);
    assert_eq!(results[1].pool, "networks/red");
    assert!(results[0].share_id.is_some() && results[1].share_id.is_none());
    let consumed = results[0].consumed_capacity.clone().expect("consumed");
    assert_eq!(consumed, BTreeMap::from([("ports".to_owned(), Quantity("1".to_owned()))]));
}

#[test]
fn a_shared_device_is_given_until_its_capacity_is_used_up() {
    let wants = |count: u32| {
        one(json!({"deviceClassName": "net", "count": count, "selectors": [{"cel": {"expression":
            "device.allowMultipleAllocations && device.attributes['netferry.dev'].network == 'blue'"}}]}))
    };
    let allocation = run(&wants(3), &networks(), &Taken::new()).expect("three of three");
    assert_eq!(given(&allocation), pairs(&[("r", "port-blue"); 3]));
    let shares: std::collections::BTreeSet<_> =
        results_of(&allocation).into_iter().filter_map(|result| result.share_id).collect();
    assert_eq!(shares.len(), 3, "each has its own");

    let share = |claim: &str| Share {
        claim: claim.to_owned(),
        consumed: BTreeMap::from([("ports".to_owned(), Quantity("1".to_owned()))]),
    };
    let port = ("n1".to_owned(), "port-blue".to_owned());
    let two = Taken::from([(port.clone(), vec![share("d/a"), share("d/b")])]);
    run(&wants(1), &networks(), &two).expect("one is left");
    let error = run(&wants(2), &networks(), &two).expect_err("one is left, two are wanted");
    assert!(matches!(error, AllocateError::Unsatisfied { .. }), "{error}");
    let three = Taken::from([(port, vec![share("d/a"), share("d/b"), share("d/c")])]);
    let error = run(&wants(1), &networks(), &three).expect_err("none is left").to_string();
    assert!(error.contains("port-blue is shared by 3 claims"), "{error}");
}
