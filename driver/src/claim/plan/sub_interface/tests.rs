use serde_json::{Value, json};

use super::super::tests::{claim, config, inventory, planned, result};
use crate::{
    claim::{Checkpoint, ClaimRef, InterfaceRecord, Made, Plan},
    link::SubInterface,
};

/// What is made on a share of `ens5`, from the class's configuration.
fn on_ens5(share: &str, fields: &Value, prepared: &[Checkpoint]) -> Result<Plan, String> {
    from("FromClass", share, fields, prepared)
}

fn from(source: &str, share: &str, fields: &Value, prepared: &[Checkpoint]) -> Result<Plan, String> {
    let mut result = result("nic", "ens5");
    result["shareID"] = share.into();
    planned(&claim(&[result], &[config(source, &[], fields)]), &inventory(&["ens5"]), prepared)
}

/// The plan as that of another claim, prepared.
fn prepared(uid: &str, plan: Plan) -> Checkpoint {
    let claim = ClaimRef { namespace: "default".into(), name: format!("claim-{uid}"), uid: uid.into() };
    let mut pods = plan.pods;
    pods[0].uid = format!("pod-{uid}");
    let interfaces = plan.interfaces.into_iter().map(InterfaceRecord::planned).collect();
    Checkpoint::new(claim, pods, interfaces)
}

#[test]
fn what_is_made_shares_its_parent_with_what_goes_with_it() {
    let plan = on_ens5("s1", &json!({"subInterface": {"macvlan": {}}}), &[]).unwrap();
    let interface = &plan.interfaces[0];
    let Some(Made::SubInterface(upper)) = &interface.made else { panic!("{interface:?}") };
    assert_eq!((interface.host_link.as_str(), upper.sub_interface.kind()), ("ens5", "macvlan"));
    assert!(crate::claim::made::is_host_name(&upper.host_name));
    let mac = interface.hardware_addr.expect("its own");
    let first = [prepared("u7", plan)];
    let try_out = |fields: Value| on_ens5("s2", &fields, &first);
    assert!(try_out(json!({"subInterface": {"macvlan": {"mode": "bridge"}}})).is_ok());
    assert!(try_out(json!({"subInterface": {"vlan": {"id": 7}}})).is_ok());
    let error = try_out(json!({"subInterface": {"ipvlan": {}}})).unwrap_err();
    assert_eq!(
        error,
        "request nic: subInterface: ipvlan l2 private is not allowed; what goes with macvlan private on one link; \
         claim default/claim-u7 has this one"
    );
    let same = json!({"subInterface": {"macvlan": {}}, "hardwareAddr": mac.to_string()});
    assert!(try_out(same).unwrap_err().contains("an address of its own on the link"));
    assert!(try_out(json!({})).unwrap_err().contains("a device that no claim holds"));
    assert!(try_out(json!({})).unwrap_err().contains("results[0].shareID: s2 is not allowed; none"));
    let error = try_out(json!({"subInterface": {"macvlan": {}}, "mtu": 9000})).unwrap_err();
    assert!(error.contains("at most 1500, the MTU of its parent ens5"), "{error}");

    let vlan = on_ens5("s3", &json!({"subInterface": {"vlan": {"id": 7}}}), &[]).unwrap();
    assert_eq!(vlan.interfaces[0].hardware_addr, None, "its parent's");
    let vlans = [prepared("u8", vlan)];
    let again = on_ens5("s2", &json!({"subInterface": {"vlan": {"id": 7}}}), &vlans);
    assert!(again.unwrap_err().contains("vlan 7 is not allowed; what goes with vlan 7 on one link"));

    let ipvlan = on_ens5("s4", &json!({"subInterface": {"ipvlan": {"mode": "l3"}}}), &[]).unwrap();
    let ipvlans = [prepared("u9", ipvlan)];
    let other = on_ens5("s2", &json!({"subInterface": {"ipvlan": {"mode": "l2"}}}), &ipvlans);
    assert!(other.unwrap_err().contains("what goes with ipvlan l3 private"));
}

#[test]
fn nothing_is_made_on_a_link_that_is_away() {
    let moved = planned(&claim(&[result("nic", "ens5")], &[]), &inventory(&["ens5"]), &[]).unwrap();
    let error =
        on_ens5("s1", &json!({"subInterface": {"macvlan": {}}}), &[prepared("u7", moved)]).unwrap_err();
    assert!(
        error.contains("ens5 is not allowed; a device that no claim has moved; claim default/claim-u7"),
        "{error}"
    );
}

#[test]
fn a_claim_chooses_no_vlan_and_does_not_replace_its_class() {
    let error = from("FromClaim", "s1", &json!({"subInterface": {"vlan": {"id": 7}}}), &[]).unwrap_err();
    assert!(
        error.contains(
            "opaque.parameters.subInterface.vlan.id: 7 is not allowed; a VLAN in the device class only"
        ),
        "{error}"
    );
    let own = from("FromClaim", "s1", &json!({"subInterface": {"macvlan": {"mode": "vepa"}}}), &[]).unwrap();
    assert!(matches!(own.interfaces[0].sub_interface(), Some(SubInterface::Macvlan(_))));
    let configs = [
        config("FromClass", &[], &json!({"subInterface": {"macvlan": {}}})),
        config("FromClaim", &[], &json!({"subInterface": {"macvlan": {"mode": "bridge"}}})),
    ];
    let error = planned(&claim(&[result("nic", "ens5")], &configs), &inventory(&["ens5"]), &[]).unwrap_err();
    assert!(
        error.contains("subInterface: this field is not allowed; it in the device class only"),
        "{error}"
    );
}
