//! `subInterface`, from its text to what it is.

use super::*;

#[test]
fn sub_interfaces_are_read_with_their_defaults() {
    let read = |value: Value| {
        InterfaceConfig::parse(&config(&json!({"subInterface": value})))
            .map(|config| config.sub_interface.unwrap().to_string())
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    };
    assert_eq!(read(json!({"macvlan": {}})).unwrap(), "macvlan private");
    assert_eq!(read(json!({"macvlan": {"mode": "vepa"}})).unwrap(), "macvlan vepa");
    assert_eq!(read(json!({"ipvlan": {"mode": "l3"}})).unwrap(), "ipvlan l3 private");
    assert_eq!(read(json!({"vlan": {"id": 7}})).unwrap(), "vlan 7");
    for (value, expected) in [
        (json!({"vlan": {"id": 0}}), "subInterface.vlan.id: 0 is not allowed; 1 to 4094"),
        (json!({"vlan": {"id": 4095}}), "subInterface.vlan.id: 4095 is not allowed; 1 to 4094"),
        (json!({"vlan": {}}), "subInterface.vlan.id: is missing"),
        (json!({"macvlan": {"mode": "passthru"}}), "\"bridge\", \"private\", \"vepa\""),
        (json!({"macvlan": {}, "vlan": {"id": 7}}), "exactly one of macvlan, ipvlan, vlan"),
        (json!({}), "exactly one of macvlan, ipvlan, vlan"),
        (json!({"bridge": {}}), "subInterface.bridge: this field is not allowed; macvlan, ipvlan, vlan"),
        (json!(null), "null"),
    ] {
        let error = read(value).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let check = |value: Value| {
        let errors = InterfaceConfig::parse(&config(&value)).unwrap().check();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let l3s = json!({"ipvlan": {"mode": "l3s"}});
    assert!(check(json!({"subInterface": l3s})).contains("an l3s link receives passes no program"));
    assert_eq!(check(json!({"subInterface": l3s, "isolation": "off"})), "");
    let mac = json!({"subInterface": {"ipvlan": {}}, "hardwareAddr": "02:00:00:00:00:01"});
    assert!(check(mac).contains("the hardware address of its parent"));
}
