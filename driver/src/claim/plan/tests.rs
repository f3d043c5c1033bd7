use serde_json::{Value, json};

use super::*;
use crate::{
    claim::{InterfaceRecord, config::API_VERSION},
    datapath::Isolation,
    device::{Device, MtuRange, management::NotMovable},
    network::access::NoNetworks,
};

const DRIVER: &str = "netferry.dev";

pub(super) fn inventory(names: &[&str]) -> Inventory {
    let device = |name: &&str| {
        let device = Device {
            name: (*name).to_owned(),
            ifname: (*name).to_owned(),
            ifindex: 4,
            mtu: 1500,
            oper_state: "up".into(),
            ..Device::default()
        };
        ((*name).to_owned(), device)
    };
    Inventory { devices: names.iter().map(device).collect() }
}

fn asked() -> ClaimRef {
    ClaimRef { namespace: "default".into(), name: "fast".into(), uid: "u1".into() }
}

pub(super) fn result(request: &str, device: &str) -> Value {
    json!({"request": request, "driver": DRIVER, "pool": "node-1", "device": device})
}

pub(super) fn config(source: &str, requests: &[&str], fields: &Value) -> Value {
    let mut parameters = json!({"apiVersion": API_VERSION, "kind": "InterfaceConfig"});
    parameters.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({"source": source, "requests": requests, "opaque": {"driver": DRIVER, "parameters": parameters}})
}

pub(super) fn claim(results: &[Value], configs: &[Value]) -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"namespace": "default", "name": "fast", "uid": "u1"},
        "spec": {},
        "status": {
            "allocation": {"devices": {"results": results, "config": configs}},
            "reservedFor": [{"resource": "pods", "name": "web", "uid": "p1"}],
        },
    })
}

pub(super) fn planned(claim: &Value, inventory: &Inventory, prepared: &[Checkpoint]) -> Result<Plan, String> {
    let claim: ResourceClaim = serde_json::from_value(claim.clone()).unwrap();
    let networks = BTreeMap::new();
    let place = Place {
        driver: DRIVER,
        pool: "node-1",
        inventory,
        prepared,
        networks: &networks,
        uplinks: &BTreeMap::new(),
        members: &NoNetworks,
        leases: &BTreeMap::new(),
    };
    plan(&claim, &asked(), &place)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

fn checkpoint(uid: &str, pod: &str, device: &str, name: &str) -> Checkpoint {
    let value = claim(&[result("nic", device)], &[config("FromClaim", &[], &json!({"name": name}))]);
    let mut plan = planned(&value, &inventory(&[device]), &[]).unwrap();
    plan.claim = ClaimRef { namespace: "default".into(), name: format!("claim-{uid}"), uid: uid.into() };
    plan.pods[0].uid = pod.into();
    plan.pods[0].name = if pod == "p1" { "web".into() } else { pod.into() };
    let records = plan.interfaces.into_iter().map(InterfaceRecord::planned);
    Checkpoint::new(plan.claim, plan.pods, records.collect())
}

#[test]
fn plans_a_device_by_its_defaults() {
    let mut other = result("gpu", "gpu-0");
    other["driver"] = "gpu.example.com".into();
    let plan = planned(&claim(&[other, result("nic", "ens5")], &[]), &inventory(&["ens5"]), &[]).unwrap();
    assert_eq!(plan.claim, asked());
    assert_eq!(plan.pods, [PodRef { namespace: "default".into(), name: "web".into(), uid: "p1".into() }]);
    let [interface] = plan.interfaces.as_slice() else { panic!("{plan:?}") };
    assert_eq!((interface.device.as_str(), interface.host_link.as_str()), ("ens5", "ens5"));
    assert_eq!((interface.request.as_str(), interface.pool.as_str()), ("nic", "node-1"));
    assert_eq!((interface.name.as_str(), interface.isolation), ("ens5", Isolation::Strict));
    assert_eq!((interface.mtu, interface.hardware_addr), (None, None));
}

#[test]
fn merges_class_first_then_claim_by_request() {
    let configs = [
        // In the wrong order on purpose: the source decides.
        config("FromClaim", &["nic"], &json!({"mtu": 9000, "routes": []})),
        config(
            "FromClass",
            &[],
            &json!({"mtu": 1400, "isolation": "off", "routes": [{"destination": "10.0.0.0/8"}]}),
        ),
        config("FromClaim", &["nic/fast"], &json!({"name": "fast0"})),
        config("FromClaim", &["nic/slow"], &json!({"name": "slow0"})),
        config("FromClaim", &["other"], &json!({"bad": true})),
        json!({"source": "FromClaim", "opaque": {"driver": "gpu.example.com", "parameters": {"x": 1}}}),
    ];
    let value = claim(&[result("nic/fast", "ens5"), result("aux", "ens6")], &configs);
    let plan = planned(&value, &inventory(&["ens5", "ens6"]), &[]).unwrap();
    let [first, second] = plan.interfaces.as_slice() else { panic!("{plan:?}") };
    assert_eq!((first.name.as_str(), first.mtu, first.isolation), ("fast0", Some(9000), Isolation::Off));
    assert_eq!(first.routes, []);
    assert_eq!((second.name.as_str(), second.mtu, second.routes.len()), ("ens6", Some(1400), 1));
}

#[test]
fn routes_on_the_link_go_first() {
    let routes = json!({"routes": [
        {"destination": "10.0.0.0/8", "gateway": "169.254.1.1"},
        {"destination": "169.254.1.1/32"},
    ]});
    let value = claim(&[result("nic", "ens5")], &[config("FromClaim", &[], &routes)]);
    let plan = planned(&value, &inventory(&["ens5"]), &[]).unwrap();
    assert_eq!(plan.interfaces[0].routes[0].gateway, None);
    assert!(plan.interfaces[0].routes[1].gateway.is_some());
}

#[test]
fn several_pods_may_name_a_claim_that_no_template_made() {
    let mut value = claim(&[result("nic", "ens5")], &[]);
    value["status"]["reservedFor"] = json!([
        {"resource": "pods", "name": "web", "uid": "p1"}, {"resource": "pods", "name": "api", "uid": "p2"},
    ]);
    let planned = |value: &Value| planned(value, &inventory(&["ens5"]), &[]).unwrap();
    let several = planned(&value);
    let pods: Vec<_> = several.pods.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!((pods, several.shareable), (vec!["web", "api"], true));
    let owner = |controller: bool, kind: &str| json!([{"apiVersion": "v1", "kind": kind, "name": "web", "uid": "p1", "controller": controller}]);
    for (owners, shareable) in
        [(owner(true, "Pod"), false), (owner(false, "Pod"), true), (owner(true, "Job"), true)]
    {
        value["metadata"]["ownerReferences"] = owners;
        assert_eq!(planned(&value).shareable, shareable);
    }
}

#[test]
fn refuses_what_does_not_match() {
    let good = claim(&[result("nic", "ens5")], &[]);
    let change = |pointer: &str, new: Value| {
        let mut value = good.clone();
        *value.pointer_mut(pointer).unwrap() = new;
        planned(&value, &inventory(&["ens5"]), &[]).unwrap_err()
    };
    let cases = [
        (
            "/metadata/uid",
            json!("u2"),
            "metadata.uid: u2 is not allowed; u1, for which the kubelet asks: the claim was made again",
        ),
        (
            "/status/allocation",
            Value::Null,
            "status.allocation: is missing; the claim must be allocated first",
        ),
        (
            "/status/reservedFor",
            json!([]),
            "status.reservedFor: is missing; the claim must be reserved for a pod",
        ),
        (
            "/status/reservedFor/0",
            json!({"apiGroup": "batch", "resource": "jobs", "name": "x", "uid": "y"}),
            "status.reservedFor: jobs is not allowed; pods",
        ),
        (
            "/status/allocation/devices/results/0/pool",
            json!("node-2"),
            "status.allocation.devices.results[0].pool: node-2 is not allowed; node-1, this node's pool",
        ),
        (
            "/status/allocation/devices/results/0/device",
            json!("ens9"),
            "status.allocation.devices.results[0].device: ens9 is not allowed; a device that this node has now",
        ),
        (
            "/status/allocation/devices/results/0/driver",
            json!("other.dev"),
            "status.allocation.devices.results: is missing; at least one device of driver netferry.dev",
        ),
    ];
    for (pointer, new, expected) in cases {
        assert_eq!(change(pointer, new), expected);
    }
    let two = json!([
        {"resource": "pods", "name": "web", "uid": "p1"}, {"resource": "jobs", "name": "api", "uid": "p2"},
    ]);
    assert_eq!(change("/status/reservedFor", two), "status.reservedFor: jobs is not allowed; pods");
    for (field, value) in [("adminAccess", json!(true)), ("shareID", json!("a"))] {
        let mut bad = good.clone();
        bad["status"]["allocation"]["devices"]["results"][0][field] = value;
        let error = planned(&bad, &inventory(&["ens5"]), &[]).unwrap_err();
        assert!(error.contains(&format!("results[0].{field}: ")), "{error}");
    }
}

#[test]
fn refuses_bad_configuration_with_its_path() {
    let bad = config("FromClaim", &[], &json!({"mtu": 40}));
    let value = claim(&[result("a", "ens5"), result("b", "ens6")], &[bad]);
    let error = planned(&value, &inventory(&["ens5", "ens6"]), &[]).unwrap_err();
    assert_eq!(
        error,
        "status.allocation.devices.config[0].opaque.parameters.mtu: 40 is not allowed; 68 to 65535"
    );
    // Each good by itself, not so together.
    let configs = [
        config("FromClass", &[], &json!({"mtu": 1000})),
        config("FromClaim", &[], &json!({"addresses": ["2001:db8::1/64"]})),
    ];
    let error = planned(&claim(&[result("nic", "ens5")], &configs), &inventory(&["ens5"]), &[]).unwrap_err();
    assert_eq!(error, "request nic: mtu: 1000 is not allowed; 1280 to 65535 where IPv6 is configured");
}

#[test]
fn a_claim_cannot_take_off_what_its_class_demands() {
    let off = config("FromClaim", &[], &json!({"isolation": "off"}));
    let strict = config("FromClass", &[], &json!({"isolation": "strict"}));
    let results = [result("nic", "ens5")];
    let error =
        planned(&claim(&results, &[strict.clone(), off.clone()]), &inventory(&["ens5"]), &[]).unwrap_err();
    assert_eq!(
        error,
        "status.allocation.devices.config[1].opaque.parameters.isolation: \"off\" is not allowed; \
         \"strict\", which the device class sets, or what is stricter"
    );
    let weaker = config("FromClaim", &[], &json!({"isolation": "best-effort"}));
    let error = planned(&claim(&results, &[strict, weaker]), &inventory(&["ens5"]), &[]).unwrap_err();
    assert!(error.contains("\"best-effort\" is not allowed; \"strict\", which"), "{error}");
    let class = config("FromClass", &[], &json!({"isolation": "best-effort"}));
    let error = planned(&claim(&results, &[class.clone(), off.clone()]), &inventory(&["ens5"]), &[]);
    assert!(error.unwrap_err().contains("\"off\" is not allowed; \"best-effort\""));
    let stricter = config("FromClaim", &[], &json!({"isolation": "strict"}));
    let plan = planned(&claim(&results, &[class, stricter]), &inventory(&["ens5"]), &[]).unwrap();
    assert_eq!(plan.interfaces[0].isolation, Isolation::Strict);
    let plan = planned(&claim(&results, &[off]), &inventory(&["ens5"]), &[]).unwrap();
    assert_eq!(plan.interfaces[0].isolation, Isolation::Off);
}

#[test]
fn the_policy_and_limits_of_a_class_stand_alone() {
    let results = [result("nic", "ens5")];
    let plan = |configs: &[Value]| planned(&claim(&results, configs), &inventory(&["ens5"]), &[]);
    let policy = json!({"egress": {"rules": [{"action": "deny", "peers": [{"cidr": "198.51.100.0/24"}]}]}});
    let fields = json!({"policy": policy, "limits": {"egress": {"packetsPerSecond": 1000}}});
    let of_class = config("FromClass", &[], &fields);

    let interface = plan(std::slice::from_ref(&of_class)).unwrap().interfaces.remove(0);
    assert_eq!(serde_json::to_value(&interface.policy).unwrap()["egress"], policy["egress"]);
    assert_eq!(interface.limits.unwrap().egress.unwrap().packets_per_second, Some(1000));

    // Nor may an empty one take it off, whatever else the claim says.
    let of_claim = config("FromClaim", &[], &json!({"policy": {}, "limits": {"openFlows": 9}, "mtu": 1400}));
    let at = "status.allocation.devices.config[1].opaque.parameters";
    let only = "this field is not allowed; it in the device class only, which sets it";
    assert_eq!(
        plan(&[of_class.clone(), of_claim]).unwrap_err(),
        format!("{at}.policy: {only}\n{at}.limits: {only}")
    );
    let off = config("FromClaim", &[], &json!({"isolation": "off"}));
    let why =
        "it with isolation \"strict\" or \"best-effort\" only: without programs nothing would enforce it";
    assert_eq!(
        plan(&[of_class, off]).unwrap_err(),
        format!(
            "request nic: policy: this field is not allowed; {why}\nrequest nic: limits: this field is not allowed; {why}"
        )
    );

    // A claim's own may be replaced by the claim.
    let own = config("FromClaim", &[], &fields);
    let later = config("FromClaim", &[], &json!({"policy": {"ingress": {"otherwise": "deny"}}}));
    let interface = plan(&[own, later]).unwrap().interfaces.remove(0);
    assert!(interface.policy.unwrap().egress.rules.is_empty());
    assert!(interface.limits.is_some());
}

#[test]
fn a_link_that_stays_on_the_host_is_not_moved() {
    let value = claim(&[result("nic", "ens5")], &[]);
    for (why, words) in [
        (NotMovable::NodeAddress, "the node's InternalIP is on it"),
        (NotMovable::ApiServer, "the node reaches its API server through it"),
        (NotMovable::Underlay, "the tunnels of overlay networks leave through it"),
        (NotMovable::Uplink, "a network's uplink stands on it"),
        (
            NotMovable::NamespaceLocal,
            "the kernel does not move a link of this kind to another network namespace",
        ),
    ] {
        let mut inventory = inventory(&["ens5"]);
        inventory.devices.get_mut("ens5").unwrap().not_movable = Some(why);
        assert_eq!(
            planned(&value, &inventory, &[]).unwrap_err(),
            format!(
                "status.allocation.devices.results[0].device: ens5 is not allowed; a link that can leave the host: \
                 {words}; a sub-interface (subInterface) or a network's port leaves it on the host"
            )
        );
        let parent = config("FromClass", &[], &json!({"subInterface": {"macvlan": {}}}));
        let value = claim(&[result("nic", "ens5")], &[parent]);
        assert!(planned(&value, &inventory, &[]).is_ok(), "it may be a parent: {why:?}");
    }
}

#[test]
fn an_uplink_is_not_moved() {
    let value = serde_json::from_value(claim(&[result("nic", "ens5")], &[])).unwrap();
    let uplinks = BTreeMap::from([("ens5".to_owned(), "blue".to_owned())]);
    let place = Place {
        driver: DRIVER,
        pool: "node-1",
        inventory: &inventory(&["ens5"]),
        prepared: &[],
        networks: &BTreeMap::new(),
        uplinks: &uplinks,
        members: &NoNetworks,
        leases: &BTreeMap::new(),
    };
    let errors = plan(&value, &asked(), &place).unwrap_err();
    assert!(errors[0].to_string().contains("network blue uses it"), "{errors:?}");

    // Nor is what an uplink stands on.
    let mut stacked = inventory(&["ens5", "bond0", "vlan7"]);
    stacked.devices.get_mut("ens5").unwrap().master = Some("bond0".to_owned());
    stacked.devices.get_mut("vlan7").unwrap().parent = Some("bond0".to_owned());
    let uplinks = BTreeMap::from([("vlan7".to_owned(), "blue".to_owned())]);
    let errors =
        plan(&value, &asked(), &Place { inventory: &stacked, uplinks: &uplinks, ..place }).unwrap_err();
    assert!(errors[0].to_string().contains("network blue uses vlan7, which does"), "{errors:?}");
}

#[test]
fn the_mtu_is_one_that_the_link_takes() {
    let mut inventory = inventory(&["ens5"]);
    let asks = |mtu: u32| claim(&[result("nic", "ens5")], &[config("FromClaim", &[], &json!({"mtu": mtu}))]);
    inventory.devices.get_mut("ens5").unwrap().mtu_range = MtuRange { least: 576, greatest: 9194 };
    for mtu in [576, 9194] {
        assert!(planned(&asks(mtu), &inventory, &[]).is_ok(), "{mtu}");
    }
    for mtu in [575, 9195] {
        let expected = format!("request nic: mtu: {mtu} is not allowed; 576 to 9194, which link ens5 takes");
        assert_eq!(planned(&asks(mtu), &inventory, &[]).unwrap_err(), expected);
    }
    inventory.devices.get_mut("ens5").unwrap().mtu_range = MtuRange::default();
    assert!(
        planned(&asks(65535), &inventory, &[]).is_ok(),
        "a kernel that does not report it decides itself"
    );
}

#[test]
fn a_device_has_one_holder() {
    let value = claim(&[result("nic", "ens5")], &[]);
    let held = [checkpoint("u7", "p7", "ens5", "x0")];
    assert_eq!(
        planned(&value, &inventory(&["ens5"]), &held).unwrap_err(),
        "status.allocation.devices.results[0].device: ens5 is not allowed; a device that no claim holds; \
         claim default/claim-u7 holds this one"
    );
    let own = [checkpoint("u1", "p1", "ens5", "x0")];
    assert!(planned(&value, &inventory(&["ens5"]), &own).is_ok());
    let twice = claim(&[result("a", "ens5"), result("b", "ens5")], &[]);
    assert!(planned(&twice, &inventory(&["ens5"]), &[]).unwrap_err().contains("each device once"));
}

#[test]
fn a_class_turns_the_early_drop_off_and_no_claim_turns_it_on_again() {
    let early = |source: &str, value: &str| config(source, &[], &json!({"earlyDrop": value}));
    let plan =
        |configs: &[Value]| planned(&claim(&[result("a", "ens5")], configs), &inventory(&["ens5"]), &[]);
    assert!(plan(&[]).unwrap().interfaces[0].early_drop);
    assert!(!plan(&[early("FromClass", "off")]).unwrap().interfaces[0].early_drop);
    assert!(!plan(&[early("FromClaim", "off")]).unwrap().interfaces[0].early_drop);
    let error = plan(&[early("FromClass", "off"), early("FromClaim", "on")]).unwrap_err();
    assert!(error.contains("earlyDrop: this field is not allowed; it in the device class only"), "{error}");
    let error = plan(&[early("FromClaim", "none")]).unwrap_err();
    assert!(error.contains("earlyDrop: \"none\" is not allowed; \"on\" or \"off\""), "{error}");
}

#[test]
fn names_are_free_over_all_claims_of_the_pod() {
    let devices = inventory(&["eth0", "ens5", "ens6"]);
    let names = |value: &Value, prepared: &[Checkpoint]| {
        planned(value, &devices, prepared)
            .map(|plan| plan.interfaces.into_iter().map(|interface| interface.name).collect::<Vec<_>>())
    };
    // eth0 is the cluster network's; ens5 is asked for by another request.
    let takes_ens5 = config("FromClaim", &["c"], &json!({"name": "ens5"}));
    let value = claim(&[result("a", "eth0"), result("b", "ens5"), result("c", "ens6")], &[takes_ens5]);
    assert_eq!(names(&value, &[]).unwrap(), ["net1", "net2", "ens5"]);

    let value = claim(&[result("a", "ens5")], &[]);
    assert_eq!(names(&value, &[checkpoint("u2", "p1", "ens6", "ens5")]).unwrap(), ["net1"]);
    assert_eq!(names(&value, &[checkpoint("u2", "p2", "ens6", "ens5")]).unwrap(), ["ens5"], "another pod");

    let asks = claim(&[result("a", "ens5")], &[config("FromClaim", &[], &json!({"name": "x0"}))]);
    assert_eq!(
        names(&asks, &[checkpoint("u2", "p1", "ens6", "x0")]).unwrap_err(),
        "request a: name: x0 is not allowed; a name that is free in the pod; claim default/claim-u2 has this one"
    );
}

#[test]
fn one_configuration_for_two_devices_cannot_give_both_the_same() {
    let both = config(
        "FromClaim",
        &[],
        &json!({
            "name": "x0", "addresses": ["192.0.2.7/24"], "hardwareAddr": "02:00:00:00:00:01",
            "routes": [{"destination": "10.0.0.0/8", "gateway": "192.0.2.1"}],
        }),
    );
    let value = claim(&[result("nic", "ens5"), result("nic", "ens6")], &[both]);
    let error = planned(&value, &inventory(&["ens5", "ens6"]), &[]).unwrap_err();
    let fields: Vec<_> = error.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert_eq!(fields, ["name", "addresses", "routes", "hardwareAddr"], "{error}");
}
