use serde_json::json;

use super::*;

fn device() -> Device {
    serde_json::from_value(json!({
        "name": "eth1",
        "attributes": {
            "netferry.dev/ifName": {"string": "eth1"}, "kind": {"string": "veth"},
            "netferry.dev/mtu": {"int": 1500}, "netferry.dev/rdma": {"bool": false},
            "netferry.dev/firmware": {"version": "1.20.0"},
            "resource.kubernetes.io/pciBusID": {"string": "0000:01:00.0"}
        },
        "capacity": {"netferry.dev/bandwidth": {"value": "25G"}}
    }))
    .expect("device")
}

fn eval(expression: &str) -> Result<bool, SelectorError> {
    Selector::compile(expression)?.matches("netferry.dev", &device())
}

#[test]
fn attributes_decide() {
    for (expression, wanted) in [
        ("device.driver == 'netferry.dev'", true),
        ("device.attributes['netferry.dev'].ifName == 'eth1'", true),
        ("device.attributes['netferry.dev'].kind == 'veth'", true),
        ("device.attributes['netferry.dev'].mtu >= 9000", false),
        ("!device.attributes['netferry.dev'].rdma", true),
        ("device.attributes['resource.kubernetes.io'].pciBusID.startsWith('0000:01')", true),
        ("device.attributes['netferry.dev'].ifName.matches('^eth[0-9]+$')", true),
        ("device.attributes['netferry.dev'].ifName in ['eth0', 'eth2']", false),
        ("device.capacity['netferry.dev'].bandwidth.compareTo(quantity('10G')) >= 0", true),
        ("device.capacity['netferry.dev'].bandwidth.isGreaterThan(quantity('25000M'))", false),
        ("device.attributes['netferry.dev'].firmware.isGreaterThan(semver('1.9.0'))", true),
        ("device.attributes['netferry.dev'].firmware == semver('1.20.0+build')", true),
        ("device.allowMultipleAllocations", false),
    ] {
        assert_eq!(eval(expression).expect(expression), wanted, "{expression}");
    }
}

/// What kubernetes documents of its libraries, each with the result that it documents.
#[test]
fn functions_are_those_of_kubernetes() {
    for (expression, wanted) in [
        ("quantity('50k').add(quantity('20k')) == quantity('70k')", true),
        ("quantity('50k').add(20) == quantity('50020')", true),
        ("quantity('50k').sub(quantity('20k')) == quantity('30k')", true),
        ("quantity('50k').add(20).sub(quantity('100k')).sub(-50000) == quantity('20')", true),
        ("quantity('50k').sub(20000).asApproximateFloat() == 30000.0", true),
        ("quantity('1500m').asApproximateFloat() == 1.5", true),
        ("quantity('50k').isInteger() && quantity('50k').asInteger() == 50000", true),
        ("quantity('100m').isInteger() || quantity('16E').isInteger()", false),
        ("sign(quantity('-1')) == -1 && sign(quantity('0')) == 0 && sign(quantity('1m')) == 1", true),
        ("isQuantity('1.3Gi') && !isQuantity('200K') && !isQuantity('Mi')", true),
        ("isSemver('1.0.0') && !isSemver('v1.0')", true),
        ("device.attributes['netferry.dev'].firmware.minor() == 20", true),
        ("semver('1.2.3').major() == 1 && semver('1.2.3').patch() == 3", true),
        ("cel.bind(dra, device.attributes['netferry.dev'], dra.kind == 'veth' && dra.mtu < 9000)", true),
        ("cel.bind(a, 1, cel.bind(b, a + 1, a + b)) == 3", true),
    ] {
        assert_eq!(eval(expression).expect(expression), wanted, "{expression}");
    }
    assert!(matches!(eval("quantity('16E').asInteger() > 0"), Err(SelectorError::Evaluate { .. })));
    assert!(matches!(eval("cel.bind('a', 1, true)"), Err(SelectorError::Parse { .. })));
}

#[test]
fn facts_are_maps() {
    for (expression, wanted) in [
        ("size(device.attributes['netferry.dev']) == 5", true),
        ("device.capacity['netferry.dev'].size() == 1 && device.capacity['other.dev'].size() == 0", true),
        ("device.attributes['netferry.dev'].exists(name, name == 'mtu')", true),
        ("device.attributes.all(domain, domain.endsWith('.dev') || domain.endsWith('.io'))", true),
        ("device.attributes['other.dev'].exists(name, true)", false),
        ("device.attributes['netferry.dev'][?'numaNode'].orValue(7) == 7", true),
        ("device.attributes['netferry.dev'].?mtu.orValue(0) == 1500", true),
        ("device.attributes['other.dev'].?x.hasValue()", false),
    ] {
        assert_eq!(eval(expression).expect(expression), wanted, "{expression}");
    }
}

#[test]
fn missing_facts_are_an_error_unless_asked_for() {
    for (expression, wanted) in [
        ("has(device.attributes['other.dev'].x)", false),
        ("'x' in device.attributes['other.dev']", false),
        ("'other.dev' in device.attributes", false),
        ("'netferry.dev' in device.attributes", true),
        ("has(device.attributes['netferry.dev'].mtu)", true),
        ("has(device.attributes['netferry.dev'].x) && device.attributes['netferry.dev'].x == 1", false),
    ] {
        assert_eq!(eval(expression).expect(expression), wanted, "{expression}");
    }
    let error = eval("device.attributes['netferry.dev'].colour == 'red'").expect_err("no such attribute");
    let text = error.to_string();
    assert!(text.contains("\"eth1\"") && text.contains("colour"), "{text}");
}

#[test]
fn what_is_no_selector_is_refused() {
    assert!(matches!(eval("device.driver =="), Err(SelectorError::Parse { .. })));
    assert!(matches!(eval(&"x".repeat(11_000)), Err(SelectorError::Parse { .. })));
    for expression in [
        "device",
        "device.attributes",
        "device.driver",
        "1",
        "device.nothing",
        "quantity('x') == quantity('1')",
    ] {
        assert!(matches!(eval(expression), Err(SelectorError::Evaluate { .. })), "{expression}");
    }
}

#[test]
fn quantities_compare_by_amount() {
    let parse = |text: &str| text.parse::<Quantity>().expect(text);
    assert_eq!(parse("1Ki"), parse("1024"));
    assert_eq!(parse("1.5G"), parse("1500M"));
    assert_eq!(parse("1e3"), parse("1k"));
    assert_eq!(parse("-1"), parse("-1000m"));
    assert!(parse("1Gi") > parse("1G"));
    assert!(parse("16Ei") > parse("16E"));
    for bad in ["", "x", "1.2.3", "1Zi", "--1", "1e99", &"9".repeat(60)] {
        assert!(bad.parse::<Quantity>().is_err(), "{bad}");
    }
}

#[test]
fn versions_compare_as_semver_says() {
    let sorted =
        ["1.0.0-1", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-beta", "1.0.0", "1.2.0", "1.10.0", "2.0.0"];
    let parsed: Vec<version::Version> = sorted.map(|text| text.parse().expect(text)).into();
    assert!(parsed.is_sorted(), "{parsed:?}");
    for bad in ["", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.x", "1.2.3-", "v1.2.3"] {
        assert!(bad.parse::<version::Version>().is_err(), "{bad}");
    }
}
