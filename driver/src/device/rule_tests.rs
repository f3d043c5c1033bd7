use super::*;
use crate::{DRIVER_NAME, device::Sriov};

fn nic() -> Device {
    Device {
        name: "eth1".to_owned(),
        ifname: "eth1".to_owned(),
        ifindex: 3,
        mtu: 1500,
        oper_state: "up".to_owned(),
        speed_mbps: Some(25_000),
        pci_address: Some("0000:3b:00.0".to_owned()),
        sriov: Some(Sriov::Physical { vfs: 2, max_vfs: 8 }),
        addresses: vec!["192.0.2.7/24".parse().expect("an address")],
        ..Device::default()
    }
}

fn of_kind(kind: &str) -> Device {
    Device { kind: Some(kind.to_owned()), is_virtual: true, ..nic() }
}

fn standard() -> Rule {
    Rule::standard(DRIVER_NAME, false).expect("the default rule compiles")
}

fn check(expression: &str, device: &Device) -> Result<(), Reason> {
    Rule::new(DRIVER_NAME, expression, false).expect("a valid rule").check(device)
}

#[test]
fn default_rule_takes_hardware_and_stacked_links() {
    assert_eq!(standard().check(&nic()), Ok(()));
    for kind in ["vlan", "macvlan", "ipvlan", "dummy"] {
        assert_eq!(standard().check(&of_kind(kind)), Ok(()), "{kind}");
    }
}

#[test]
fn default_rule_turns_away_with_a_reason() {
    for kind in ["veth", "bridge", "bond", "vxlan", "tun", "ipip", "gretap", "wireguard", "netkit", "ifb"] {
        let reason = standard().check(&of_kind(kind)).expect_err(kind);
        assert!(reason.to_string().contains("hardware, vlan"), "{kind}: {reason}");
    }
    let reason = |device| standard().check(&device).expect_err("turned away");
    assert_eq!(reason(Device { loopback: true, ..nic() }), Reason::Loopback);
    assert_eq!(reason(Device { default_route: true, ..nic() }), Reason::DefaultRoute);
    let told = |device| reason(device).to_string();
    assert!(told(Device { master: Some("br0".to_owned()), ..nic() }).contains("enslaved"));
    assert!(told(Device { upper_links: 1, ..nic() }).contains("stacked"));
    assert!(told(Device { ifname: "kube-ipvs0".to_owned(), ..of_kind("dummy") }).contains("service"));
}

#[test]
fn default_route_needs_the_flag_and_the_rule() {
    let uplink = Device { default_route: true, ..nic() };
    assert_eq!(check("true", &uplink), Err(Reason::DefaultRoute));
    let rule = Rule::new(DRIVER_NAME, "device.attributes['netferry.dev'].mtu > 9000", true).expect("valid");
    assert!(matches!(rule.check(&uplink), Err(Reason::NotSelected(_))));
    assert_eq!(Rule::standard(DRIVER_NAME, true).expect("valid").check(&uplink), Ok(()));
    // Loopback stays out whatever is allowed.
    let loopback = Device { loopback: true, ..nic() };
    assert_eq!(Rule::new(DRIVER_NAME, "true", true).expect("valid").check(&loopback), Err(Reason::Loopback));
}

#[test]
fn expressions_of_device_classes_work() {
    for expression in [
        r#"device.driver == "netferry.dev""#,
        r#"device.attributes["netferry.dev"].kind == "physical""#,
        r#"device.attributes["netferry.dev"].ifName.startsWith("eth")"#,
        r#"device.attributes["netferry.dev"].ifName.matches("^eth[0-9]+$")"#,
        r#"device.attributes["resource.kubernetes.io"].pciBusID == "0000:3b:00.0""#,
        r#"!("pcieRoot" in device.attributes["resource.kubernetes.io"])"#,
        r#"has(device.attributes["netferry.dev"].ipv4)"#,
        r#"!has(device.attributes["netferry.dev"].numaNode)"#,
        r#"device.attributes["netferry.dev"].sriovMaxVFs >= 8"#,
        r#"!device.attributes["netferry.dev"].virtual && !device.attributes["netferry.dev"].rdma"#,
        r#"device.capacity["netferry.dev"].bandwidth.compareTo(quantity("25G")) == 0"#,
        r#"device.capacity["netferry.dev"].bandwidth.isGreaterThan(quantity("10000M"))"#,
        r#"device.capacity["netferry.dev"].bandwidth.isLessThan(quantity("1Ti"))"#,
    ] {
        assert_eq!(check(expression, &nic()), Ok(()), "{expression}");
    }
    assert_eq!(standard().check(&nic()), check(&default_expression(DRIVER_NAME), &nic()));
}

#[test]
fn a_missing_attribute_is_not_selected_and_says_which() {
    let reason = check(r#"device.attributes["netferry.dev"].numaNode == 0"#, &nic()).expect_err("missing");
    assert!(matches!(reason, Reason::Error(_)), "{reason:?}");
    assert!(reason.to_string().contains("numaNode"), "{reason}");
}

#[test]
fn a_rule_that_can_never_select_is_refused() {
    for expression in [
        "device.driver",
        r#"quantity("ten") > 1"#,
        "1 + 1",
        r#"device.attributes["netferry.dev"].ifNam == "eth1""#,
        r#"device.attributes["netferry.de"].ifName == "eth1""#,
        r#"device.atributes["netferry.dev"].ifName == "eth1""#,
        r#"device.attributes["netferry.dev"].mtu == "1500""#,
    ] {
        assert!(Rule::new(DRIVER_NAME, expression, false).is_err(), "{expression}");
        assert!(standard().sharing(Some(expression)).is_err(), "{expression}");
    }
}

#[test]
fn a_syntax_error_names_expression_and_place() {
    let expression = "device.driver == \"x\" &&\n  device.attributes[";
    let error = Rule::new(DRIVER_NAME, expression, false).expect_err("not valid");
    assert_eq!((error.expression.as_str(), error.line), (expression, 2));
    assert!(error.column > 1, "{error}");
    let told = error.to_string();
    assert!(told.contains("line 2, column") && told.contains("device.attributes["), "{told}");
}

#[test]
fn decide_covers_every_device() {
    let inventory = Inventory {
        devices: [nic(), Device { name: "veth0".to_owned(), ..of_kind("veth") }]
            .into_iter()
            .map(|device| (device.name.clone(), device))
            .collect(),
    };
    let decisions: Vec<_> = decide(&inventory, &standard())
        .into_iter()
        .map(|(device, result)| (device.name, result.is_ok()))
        .collect();
    assert_eq!(decisions, [("eth1".to_owned(), true), ("veth0".to_owned(), false)]);
}

#[test]
fn another_driver_name_is_the_domain() {
    let rule = Rule::standard("net.example.com", false).expect("the default rule compiles");
    assert_eq!(rule.check(&nic()), Ok(()));
    assert!(rule.to_string().contains("net.example.com"));
}

#[test]
fn shared_are_those_of_which_it_can_be_told() {
    let inventory =
        Inventory { devices: [("a".to_owned(), nic()), ("b".to_owned(), of_kind("vlan"))].into() };
    let shared = |expression: Option<&str>| {
        let rule = standard().sharing(expression).expect("a rule");
        decide(&inventory, &rule).into_iter().map(|(device, _)| device.shared).collect::<Vec<_>>()
    };
    assert_eq!(shared(None), [false, false]);
    assert_eq!(shared(Some(r#"device.attributes["netferry.dev"].kind == "physical""#)), [true, false]);
    assert_eq!(shared(Some(r#"device.attributes["netferry.dev"].numaNode == 0"#)), [false, false]);
    assert!(standard().sharing(Some("device.")).is_err());
}
