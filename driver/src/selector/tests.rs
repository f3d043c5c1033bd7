use serde_json::json;

use super::*;

fn device() -> Device {
    serde_json::from_value(json!({
        "name": "eth1",
        "attributes": {
            "netferry.dev/ifName": {"string": "eth1"}, "kind": {"string": "veth"},
            "netferry.dev/mtu": {"int": 1500}, "netferry.dev/rdma": {"bool": false},
            "other.dev/firmware": {"version": "1.20.0"}, "other.dev/up": {"bool": true},
            "resource.kubernetes.io/pciBusID": {"string": "0000:01:00.0"}
        },
        "capacity": {"netferry.dev/bandwidth": {"value": "25G"}}
    }))
    .expect("device")
}

fn eval(expression: &str) -> Result<bool, SelectorError> {
    Selector::compile("netferry.dev", Devices::All, expression)?.matches("netferry.dev", &device())
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
        ("device.attributes['other.dev'].firmware.isGreaterThan(semver('1.9.0'))", true),
        ("device.attributes['other.dev'].firmware == semver('1.20.0+build')", true),
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
        ("device.attributes['other.dev'].firmware.minor() == 20", true),
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
        ("size(device.attributes['netferry.dev']) == 4", true),
        ("device.capacity['netferry.dev'].size() == 1 && device.capacity['other.dev'].size() == 0", true),
        ("device.attributes['netferry.dev'].exists(name, name == 'mtu')", true),
        ("device.attributes.all(domain, domain.endsWith('.dev') || domain.endsWith('.io'))", true),
        ("device.attributes['third.dev'].exists(name, true)", false),
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
        ("'third.dev' in device.attributes", false),
        ("'netferry.dev' in device.attributes", true),
        ("has(device.attributes['netferry.dev'].mtu)", true),
        (
            "has(device.attributes['netferry.dev'].alias) && device.attributes['netferry.dev'].alias == ''",
            false,
        ),
        ("has(device.attributes['other.dev'].x) && device.attributes['other.dev'].x == 1", false),
    ] {
        assert_eq!(eval(expression).expect(expression), wanted, "{expression}");
    }
    let error = eval("device.attributes['other.dev'].colour == 'red'").expect_err("no such attribute");
    let text = error.to_string();
    assert!(text.contains("\"eth1\"") && text.contains("colour"), "{text}");
}

#[test]
fn what_is_no_selector_is_refused() {
    assert!(matches!(eval("device.driver =="), Err(SelectorError::Parse { .. })));
    assert!(matches!(eval(&"x".repeat(11_000)), Err(SelectorError::Parse { .. })));
    assert!(matches!(eval(""), Err(SelectorError::Parse { .. })));
    // What is known only once there is a device.
    for expression in ["device.attributes['other.dev'].firmware", "quantity(device.driver) == quantity('1')"]
    {
        assert!(matches!(eval(expression), Err(SelectorError::Evaluate { .. })), "{expression}");
    }
}

/// Each with the whole message, after the place.
#[test]
#[expect(clippy::too_many_lines, reason = "one table of cases")]
fn types_are_checked_before_any_device_is_seen() {
    const ALL: &str = "address, alias, defaultRoute, driver, family, foreignPrograms, ifName, ipv4, ipv6, kind, mac, master, mtu, network, notMovable, \
                       numaNode, parent, rdma, rdmaDevice, speedMbps, sriov, sriovMaxVFs, sriovPF, sriovVFIndex, sriovVFs, \
                       state, transport, type, uplink, upperLinks, virtual";
    let no = |name: &str, hint: &str| format!("netferry.dev has no attribute {name:?}{hint}; allowed: {ALL}");
    let said = |text: &str| text.to_owned();
    let own = "device.attributes['netferry.dev']";
    for (expression, wanted) in [
        (said("1 + 1"), said("it gives an int; allowed: true or false")),
        (said("'yes'"), said("it gives a string; allowed: true or false")),
        (said("device"), said("it gives a device; allowed: true or false")),
        (said("device.attributes"), said("it gives the map of all attributes; allowed: true or false")),
        (format!("{own}.ifName"), said("it gives a string; allowed: true or false")),
        (
            said("devise.driver == 'x'"),
            said("unknown name \"devise\" (did you mean \"device\"?); allowed: device"),
        ),
        (
            said("device.atributes['netferry.dev'].mtu == 1"),
            said(
                "a device has no field \"atributes\" (did you mean \"attributes\"?); allowed: driver, attributes, \
                 capacity, allowMultipleAllocations",
            ),
        ),
        (format!("{own}.ifNam == 'eth1'"), no("ifNam", " (did you mean \"ifName\"?)")),
        (format!("{own}['ifname'] == 'eth1'"), no("ifname", " (did you mean \"ifName\"?)")),
        (format!("{own}.colour == 'red'"), no("colour", "")),
        (format!("has({own}.colour)"), no("colour", "")),
        (format!("'colour' in {own}"), no("colour", "")),
        (format!("{own}.?colour.orValue('') == 'red'"), no("colour", "")),
        (format!("{own}[?'colour'].hasValue()"), no("colour", "")),
        (format!("cel.bind(dra, {own}, dra.colour == 'red')"), no("colour", "")),
        (
            said("device.attributes['netfery.dev'].mtu == 1"),
            said(
                "unknown domain \"netfery.dev\" (did you mean \"netferry.dev\"?); allowed: netferry.dev, \
                 resource.kubernetes.io",
            ),
        ),
        (
            said("device.attributes['netferry.dev/mtu'] == 1"),
            said(
                "\"netferry.dev/mtu\" is no domain; allowed: a domain, then a name, as in [\"netferry.dev\"].mtu",
            ),
        ),
        (
            said("device.capacity['netferry.dev'].bandwith.isGreaterThan(quantity('1'))"),
            said(
                "netferry.dev has no capacity \"bandwith\" (did you mean \"bandwidth\"?); allowed: bandwidth, ports",
            ),
        ),
        (
            said("device.attributes['resource.kubernetes.io'].pciBusId == ''"),
            said(
                "resource.kubernetes.io has no attribute \"pciBusId\" (did you mean \"pciBusID\"?); allowed: \
                 pciBusID, pcieRoot",
            ),
        ),
        (format!("{own}.ifName == 1"), said("a string is never equal to an int")),
        (format!("{own}.mtu == '9000'"), said("an int is never equal to a string")),
        (format!("{own}.mtu > '9000'"), said("an int has no order beside a string")),
        (format!("{own}.ifName in [1, 2]"), said("a string is never in a list of ints")),
        (
            format!("{own}.mtu in 'abc'"),
            said("a string has no elements; allowed after `in`: a list or a map"),
        ),
        (format!("!{own}.mtu"), said("an int is no condition; allowed: true or false")),
        (format!("{own}.rdma && {own}.kind"), said("a string is no condition; allowed: true or false")),
        (format!("{own}.mtu ? true : false"), said("an int is no condition; allowed: true or false")),
        (
            format!("{own}.rdma ? 1 : 'a'"),
            said("one side of ?: is an int, the other a string; allowed: one type"),
        ),
        (format!("{own}.mtu + 'a' == ''"), said("an int + a string cannot be computed")),
        (
            format!("{own}.mtu.startsWith('9')"),
            said("startsWith() cannot be called on and with an int and a string"),
        ),
        (
            format!("{own}.ifName.startWith('e')"),
            said("unknown function startWith() (did you mean \"startsWith\"?)"),
        ),
        (said("frobnicate(device.driver)"), said("unknown function frobnicate()")),
        (said("device.driver.exists(c, true)"), said("a string has no elements to go through")),
        (format!("{own}.exists(name, name == 1)"), said("a string is never equal to an int")),
        (
            said("device.capacity['netferry.dev'].bandwidth > quantity('1G')"),
            said("a quantity has no order by <; allowed: isLessThan(), isGreaterThan(), compareTo()"),
        ),
        (
            said("device.capacity['netferry.dev'].bandwidth == 1000"),
            said("a quantity is never equal to an int"),
        ),
        (
            said("device.capacity['netferry.dev'].bandwidth.isLessThan(quantity('10X'))"),
            said("\"10X\" is not a quantity (for example 10, 1.5Gi, 25G, 100m)"),
        ),
        (
            said("device.attributes['other.dev'].firmware.isLessThan(semver('1.2'))"),
            said("\"1.2\" is not a semantic version (for example 1.2.3)"),
        ),
        (
            said("device.attributes[1].x == 1"),
            said("the map of all attributes has a string as key, not an int"),
        ),
    ] {
        let error = eval(&expression).expect_err(&expression);
        let SelectorError::Parse(error) = error else { panic!("{expression}: {error}") };
        assert_eq!(error.message, wanted, "{expression}");
        // A selector that the scheduler evaluates is checked alike.
        assert_eq!(Selector::check("netferry.dev", &expression), Err(error), "{expression}");
    }
}

#[test]
fn links_have_the_attributes_of_links_only() {
    let compile = |text: &str| Selector::compile("netferry.dev", Devices::Links, text).map(|_| ());
    for (expression, wanted) in [
        ("device.attributes['netferry.dev'].network == 'blue'", "has no attribute \"network\""),
        ("device.capacity['netferry.dev'].ports == quantity('1')", "has no capacity \"ports\""),
        ("'other.dev' in device.attributes", "unknown domain \"other.dev\""),
        ("device.attributes['resource.kubernetes.io'].later == 1", "has no attribute \"later\""),
    ] {
        let error = compile(expression).expect_err(expression);
        assert!(error.message.contains(wanted), "{error}");
        assert_eq!(Selector::check("netferry.dev", expression), Ok(()), "{expression}");
    }
    assert_eq!(compile("device.attributes['netferry.dev'].ifName == 'eth1'"), Ok(()));
}

#[test]
fn the_place_of_a_fault_is_named() {
    let expression =
        "device.driver == \"netferry.dev\" &&\n  device.attributes[\"netferry.dev\"].mtu == \"x\"";
    let error = Selector::check("netferry.dev", expression).expect_err("an int and a string");
    assert_eq!((error.line, error.column), (2, 41), "{error}");
}

/// Expressions of Kubernetes' documentation and of its tests that are true of some device.
#[test]
fn what_kubernetes_takes_is_taken() {
    for expression in [
        "device.driver == \"gpu.example.com\" && device.attributes[\"gpu.example.com\"].model == \"a100\"",
        "device.attributes[\"resource-driver.example.com\"].color == \"black\" && \
         device.attributes[\"resource-driver.example.com\"].size == \"large\"",
        "device.attributes[\"dra.example.com\"].driverVersion.compareTo(semver(\"1.2.3\")) >= 0",
        "device.attributes[\"ext.example.com\"].type.matches('^a')",
        "cel.bind(dra, device.attributes[\"dra.example.com\"], dra.oneBool && dra.anotherBool)",
        "device.attributes[\"dra.example.com\"].?oneBool.orValue(false)",
        "device.attributes[?\"dra.example.com\"].?model.orValue(\"\") == \"a\"",
        "optional.of(device.driver).hasValue() && !optional.none().hasValue()",
        "\"dra.example.com\" in device.attributes && \"model\" in device.attributes[\"dra.example.com\"]",
        "has(device.attributes[\"dra.example.com\"].model)",
        "device.attributes[\"dra.example.com\"].models.exists(m, m == \"a\")",
        "device.attributes.exists(domain, device.attributes[domain].exists(name, name.startsWith(\"a\")))",
        "device.attributes[\"dra.example.com\"].oneBool",
        "device.capacity[\"dra.example.com\"].memory.compareTo(quantity(\"8Gi\")) >= 0",
        "device.attributes[\"dra.example.com\"].count > 1.5 && 1 < 2.5",
        "device.attributes[\"netferry.dev\"].ifName.size() == 4 && size([1, 2]) == 2",
        "[1, 2].map(n, n * 2).exists(n, n == 4) && {\"a\": 1}[\"a\"] == 1 && {\"a\": 1}.a == 1",
        "type(device.driver) == string && int(\"1\") == 1 && string(1) == \"1\"",
        "[1, 2, 3].filter(n, n > 1).size() == 2 && [\"a\"].all(s, s == \"a\") && [1].exists_one(n, n == 1)",
        "device.attributes[\"netferry.dev\"].numaNode in [0, 1] && device.attributes[\"netferry.dev\"].master != null",
        "device.allowMultipleAllocations == true",
        "device.attributes['netferry.dev'].?ifName.optMap(v, v == 'eth0').orValue(false)",
    ] {
        assert_eq!(Selector::check("netferry.dev", expression), Ok(()), "{expression}");
        Selector::compile("netferry.dev", Devices::All, expression).expect(expression);
    }
    // Only the scheduler evaluates these.
    for (expression, name) in [
        ("device.driver.lowerAscii() == 'netferry.dev'", "lowerAscii"),
        ("device.attributes['netferry.dev'].ifName.find('[0-9]+') == '1'", "find"),
        ("cidr('10.0.0.0/8').containsIP(device.attributes['netferry.dev'].ipv4)", "cidr"),
        ("isIP(device.driver)", "isIP"),
        ("[1, 2].transformList(i, v, i + v).sum() == 4", "transformList"),
        ("semver('v1.2', true).major() == 1", "semver"),
        ("sets.contains([1, 2], [1])", "sets.contains"),
    ] {
        assert_eq!(Selector::check("netferry.dev", expression), Ok(()), "{expression}");
        let error = Selector::compile("netferry.dev", Devices::All, expression).expect_err(expression);
        let wanted = format!(
            "{name}() is a function that the scheduler of Kubernetes evaluates, and netferry does not"
        );
        assert!(error.message.starts_with(&wanted), "{error}");
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
