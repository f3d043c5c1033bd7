use serde_json::json;

use super::*;

fn errors(change: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut spec = json!({
        "subnets": ["10.1.0.0/16", "fd00:1::/64"],
        "gateways": ["10.1.0.1", "fd00:1::1"],
        "mtu": 1400,
        "transport": {"overlay": {"vni": 7}},
        "namespaceSelector": {"matchLabels": {"team": "shop"}},
        "policy": {"ingress": {"rules": [{"action": "allow", "peers": [{"cidr": "10.1.0.0/16"}]}]}},
        "limits": {"egress": {"bitsPerSecond": 1_000_000}},
    });
    change(&mut spec);
    match parse(&spec) {
        Ok(spec) => validate("blue", &spec).iter().map(ToString::to_string).collect(),
        Err(error) => vec![error.to_string()],
    }
}

#[test]
fn a_good_one_is_good() {
    assert_eq!(errors(|_| {}), [""; 0]);
    assert_eq!(errors(|spec| spec["transport"] = json!({"local": {}})), [""; 0]);
    let uplink =
        json!({"uplink": {"selector": "device.attributes[\"netferry.dev\"].ifName == \"eth1\"", "vlan": 7}});
    assert_eq!(errors(|spec| spec["transport"] = uplink.clone()), [""; 0]);
    for mode in ["bridged", "routed"] {
        let uplink = json!({"uplink": {"selector": "true", "mode": mode}});
        assert_eq!(errors(|spec| spec["transport"] = uplink), [""; 0], "{mode}");
    }
    let by_dhcp = |spec: &mut Value| {
        spec["transport"] = uplink.clone();
        spec["addresses"] = "dhcp".into();
        (spec["subnets"], spec["gateways"]) = (json!(["10.1.0.0/16"]), json!(["10.1.0.1"]));
    };
    assert_eq!(errors(by_dhcp), [""; 0]);
    assert_eq!(errors(|spec| spec["addresses"] = "allocated".into()), [""; 0]);
}

/// A change that makes a good one bad: then the field, its value, and what is allowed.
type Case = (fn(&mut Value), &'static str, &'static str, &'static str);

fn check(cases: &[Case]) {
    for (change, field, value, allowed) in cases {
        let errors = errors(change);
        assert!(
            errors.iter().any(|e| e.starts_with(field) && e.contains(value) && e.contains(allowed)),
            "{field}, {value}, {allowed}: {errors:?}"
        );
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table of cases")]
fn each_error_names_field_value_and_what_is_allowed() {
    let cases: &[Case] = &[
        (|s| s["subnets"] = json!([]), "spec.subnets", "0 subnets", "one at least"),
        (|s| s["subnets"] = json!(["10.1.0.1/16"]), "spec.subnets[0]", "10.1.0.1/16", "host bits"),
        (
            |s| s["subnets"] = json!(["10.1.0.0/16", "10.2.0.0/16"]),
            "spec.subnets[1]",
            "10.2.0.0/16",
            "family",
        ),
        (|s| s["subnets"] = json!(["10.1.0.0/31"]), "spec.subnets[0]", "10.1.0.0/31", "30 bits"),
        (|s| s["subnets"] = json!(["224.0.0.0/8"]), "spec.subnets[0]", "224.0.0.0/8", "unicast"),
        (|s| s["subnets"] = json!(["fe80::/64"]), "spec.subnets[0]", "fe80::/64", "unicast"),
        (|s| s["subnets"] = json!(["0.0.0.0/0"]), "spec.subnets[0]", "0.0.0.0/0", "8 bits"),
        (|s| s["subnets"] = json!(["ten"]), "spec.subnets[0]", "ten", ""),
        (|s| s["gateways"] = json!(["10.2.0.1"]), "spec.gateways[0]", "10.2.0.1", "one of the subnets"),
        (|s| s["gateways"] = json!(["10.1.0.0"]), "spec.gateways[0]", "10.1.0.0", "first"),
        (|s| s["gateways"] = json!(["fd00:1::"]), "spec.gateways[0]", "fd00:1::", "first"),
        (|s| s["gateways"] = json!(["10.1.255.255"]), "spec.gateways[0]", "10.1.255.255", "broadcast"),
        (|s| s["gateways"] = json!(["10.1.0.1", "10.1.0.2"]), "spec.gateways[1]", "10.1.0.2", "family"),
        (|s| s["addresses"] = json!("dhcp"), "spec.addresses", "dhcp", "a transport.uplink"),
        (|s| s["addresses"] = json!("dhcp"), "spec.subnets[1]", "fd00:1::/64", "there is no DHCPv6"),
        (
            |s| {
                s["addresses"] = json!("blocks");
                s["subnets"] = json!(["10.1.0.0/25", "fd00:1::/64"]);
                s["gateways"] = json!([]);
            },
            "spec.subnets[0]",
            "10.1.0.0/25",
            "24 bits (IPv4) or 120 (IPv6)",
        ),
        (
            |s| {
                s["addresses"] = json!("blocks");
                s["subnets"] = json!(["10.1.0.0/24", "fd00:1::/121"]);
                s["gateways"] = json!([]);
            },
            "spec.subnets[1]",
            "fd00:1::/121",
            "24 bits (IPv4) or 120 (IPv6)",
        ),
        (|s| s["addresses"] = json!("slaac"), "spec.addresses", "slaac", "allocated"),
        (|s| s["mtu"] = json!(1279), "spec.mtu", "1279", "1280 to 65465"),
        (|s| s["mtu"] = json!(65466), "spec.mtu", "65466", "1280 to 65465"),
        (|s| s["transport"] = json!({}), "spec.transport", "0 of its fields", "exactly one"),
        (
            |s| s["transport"] = json!({"local": {}, "overlay": {"vni": 7}}),
            "spec.transport",
            "2 of its fields",
            "exactly one",
        ),
        (|s| s["transport"]["overlay"]["vni"] = json!(0), "spec.transport.overlay.vni", "0", "1 to 16777215"),
        (
            |s| s["transport"]["overlay"]["vni"] = json!(1 << 24),
            "spec.transport.overlay.vni",
            "16777216",
            "1 to 16777215",
        ),
        (
            |s| s["transport"]["wormhole"] = json!({}),
            "spec.transport.wormhole",
            "this field",
            "local, uplink, overlay",
        ),
        (|s| s["limits"] = json!({}), "spec.limits", "{}", "one limit or more"),
        (|s| s["limits"] = Value::Null, "spec.limits", "null", "leave the field out"),
        (
            |s| s["policy"] = json!({"egress": {"rules": [{"action": "deny", "peers": null}]}}),
            "spec.policy.egress.rules[0].peers",
            "null",
            "leave the field out",
        ),
        (
            |s| s["policy"] = json!({"egress": {"rules": [{"action": "permit"}]}}),
            "spec.policy.egress.rules[0].action: \"permit\" is not",
            "permit",
            "\"allow\" or \"deny\"",
        ),
        (|s| s["vni"] = json!(7), "spec.vni", "this field", "subnets, gateways"),
        (
            |s| s["namespaceSelector"] = json!({"matchLabel": {"a": "b"}}),
            "spec.namespaceSelector.matchLabel",
            "a",
            "matchLabels",
        ),
        (
            |s| s["namespaceSelector"] = json!({"matchExpressions": [{"key": "a", "operator": "Is"}]}),
            "spec.namespaceSelector.matchExpressions[0].operator",
            "Is",
            "In, NotIn",
        ),
        (
            |s| s["namespaceSelector"] = json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
            "spec.namespaceSelector.matchExpressions[0].values",
            "[]",
            "one value or more",
        ),
        (
            |s| s["policy"]["ingress"]["rules"][0]["peers"][0]["cidr"] = json!("10.1.0.1/16"),
            "spec.policy.ingress.rules[0].peers[0].cidr",
            "10.1.0.1/16",
            "host bits",
        ),
        (
            |s| s["limits"]["egress"]["bitsPerSecond"] = json!(1),
            "spec.limits.egress.bitsPerSecond",
            "1",
            "8000 to",
        ),
    ];
    check(cases);
}

#[test]
fn errors_of_uplinks_are_named() {
    check(&[
        (
            |s| s["transport"] = json!({"uplink": {"selector": "true", "vlan": 4095}}),
            "spec.transport.uplink.vlan",
            "4095",
            "1 to 4094",
        ),
        (
            |s| s["transport"] = json!({"uplink": {"selector": "device."}}),
            "spec.transport.uplink.selector",
            "device.",
            "a CEL expression over a link's attributes (line 1",
        ),
        (
            |s| s["transport"] = json!({"uplink": {"selector": ""}}),
            "spec.transport.uplink.selector",
            "",
            "1 to 10240",
        ),
        (
            |s| s["transport"] = json!({"uplink": {"selector": "true", "mode": "routed", "vlan": 7}}),
            "spec.transport.uplink.vlan",
            "7",
            "none where mode is routed",
        ),
        (
            |s| s["transport"] = json!({"uplink": {"selector": "true", "mode": "Routed"}}),
            "spec.transport",
            "Routed",
            "\"bridged\" or \"routed\"",
        ),
        (
            |s| {
                s["transport"] = json!({"uplink": {"selector": "true", "mode": "routed"}});
                s["gateways"] = json!(["10.1.0.1"]);
            },
            "spec.gateways",
            "[10.1.0.1]",
            "a gateway in fd00:1::/64, too",
        ),
        (
            |s| {
                s["transport"] = json!({"uplink": {"selector": "true", "mode": "routed"}});
                s["addresses"] = json!("dhcp");
            },
            "spec.addresses",
            "dhcp",
            "allocated where mode is routed",
        ),
    ]);
}

#[test]
fn where_addresses_come_from_stays() {
    let spec = |more: Value| {
        let mut spec = json!({"subnets": ["10.1.0.0/16"], "transport": {"uplink": {"selector": "true"}}});
        spec.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
        parse(&spec).expect("a spec")
    };
    let (plain, said, dhcp) =
        (spec(json!({})), spec(json!({"addresses": "allocated"})), spec(json!({"addresses": "dhcp"})));
    assert_eq!(changed(&said, &plain), []);
    let errors = changed(&dhcp, &plain).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    assert!(errors.starts_with("spec.addresses: \"dhcp\"") && errors.contains("allocated"), "{errors}");
    assert_eq!(
        serde_json::to_value(&said).expect("JSON").get("addresses"),
        None,
        "what is usual is not written"
    );
}

#[test]
fn a_name_becomes_part_of_a_devices_name() {
    let spec = parse(&json!({"subnets": ["10.1.0.0/16"], "transport": {"local": {}}})).expect("a spec");
    for (name, good) in
        [("blue", true), ("a.b", false), ("Blue", false), (&"a".repeat(58), true), (&"a".repeat(59), false)]
    {
        assert_eq!(validate(name, &spec).is_empty(), good, "{name}");
    }
}

#[test]
fn two_networks_have_no_wire_in_common() {
    let spec = |uplink: Value| {
        let all =
            json!({"subnets": ["10.1.0.0/16"], "gateways": ["10.1.0.1"], "transport": {"uplink": uplink}});
        parse(&all).expect("a spec")
    };
    let on = |selector: &str, vlan: Option<u16>| match vlan {
        Some(vlan) => spec(json!({"selector": selector, "vlan": vlan})),
        None => spec(json!({"selector": selector})),
    };
    let routed = |selector: &str| spec(json!({"selector": selector, "mode": "routed"}));
    let said =
        |ours: &NetworkSpec, theirs: &NetworkSpec| conflict(ours, "old", theirs).map(|it| it.to_string());
    for (ours, theirs, field) in [
        (on("true", Some(7)), on("true", Some(7)), "spec.transport.uplink.vlan"),
        (on("true", None), routed("true"), "spec.transport.uplink.vlan"),
        (routed("true"), on("true", None), "spec.transport.uplink.selector"),
        (routed("true"), routed("true"), "spec.transport.uplink.selector"),
    ] {
        let problem = said(&ours, &theirs).expect("a conflict");
        assert!(problem.starts_with(field) && problem.contains("\"old\""), "{problem}");
    }
    for (ours, theirs) in [
        (on("true", Some(7)), on("true", Some(8))),
        (routed("true"), on("true", Some(7))),
        (routed("true"), routed("false")),
    ] {
        assert_eq!(said(&ours, &theirs), None);
    }
}
