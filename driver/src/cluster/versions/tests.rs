use k8s_openapi::api::resource::{v1, v1beta1, v1beta2};
use serde_json::json;

use super::*;

fn slice() -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "s"},
        "spec": {
            "driver": "netferry.dev", "nodeName": "n1",
            "pool": {"name": "n1", "generation": 3, "resourceSliceCount": 1},
            "devices": [
                {"name": "eth1", "attributes": {"netferry.dev/mtu": {"int": 1500}},
                 "capacity": {"netferry.dev/bandwidth": {"value": "10G"}},
                 "taints": [{"key": "k", "effect": "NoSchedule"}]},
                {"name": "eth2"}
            ]
        }
    })
}

fn claim() -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c", "namespace": "d"},
        "spec": {"devices": {
            "requests": [
                {"name": "a", "exactly": {"deviceClassName": "net", "count": 2, "allocationMode": "ExactCount",
                    "selectors": [{"cel": {"expression": "true"}}]}},
                {"name": "b", "firstAvailable": [{"name": "fast", "deviceClassName": "net"}]}
            ],
            "config": [{"requests": ["a"], "opaque": {"driver": "netferry.dev", "parameters": {"kind": "X"}}}]
        }},
        "status": {"allocation": {"devices": {"results": [
            {"request": "a", "driver": "netferry.dev", "pool": "n1", "device": "eth1"}]}}}
    })
}

#[test]
fn the_newest_served_version_is_chosen() {
    assert_eq!(ApiVersion::choose(["v1beta1", "v1", "v1beta2"]), Some(ApiVersion::V1));
    assert_eq!(ApiVersion::choose(["v1beta1", "v1beta2", "v1alpha3"]), Some(ApiVersion::V1beta2));
    assert_eq!(ApiVersion::choose(["v1alpha3", "v1beta1"]), Some(ApiVersion::V1beta1));
    assert_eq!(ApiVersion::choose(["v1alpha3", "v2"]), None);
}

#[test]
fn v1beta1_slices_have_basic_devices() {
    let wire = to_wire(ApiVersion::V1beta1, slice());
    assert_eq!(wire["apiVersion"], "resource.k8s.io/v1beta1");
    let typed: v1beta1::ResourceSlice = serde_json::from_value(wire.clone()).expect("v1beta1 shape");
    let devices = typed.spec.devices.expect("devices");
    let basic = devices[0].basic.as_ref().expect("basic");
    assert_eq!(basic.attributes.as_ref().expect("attributes")["netferry.dev/mtu"].int, Some(1500));
    assert_eq!(basic.capacity.as_ref().expect("capacity")["netferry.dev/bandwidth"].value.0, "10G");
    assert!(devices[1].basic.is_some(), "the server refuses a v1beta1 device without `basic`");
    assert_eq!(wire["spec"]["devices"][0].as_object().expect("object").len(), 2, "only name and basic");
    assert_eq!(from_wire(ApiVersion::V1beta1, wire), slice());
}

#[test]
fn v1beta1_claims_have_flat_requests() {
    let wire = to_wire(ApiVersion::V1beta1, claim());
    let typed: v1beta1::ResourceClaim = serde_json::from_value(wire.clone()).expect("v1beta1 shape");
    let requests = typed.spec.devices.expect("devices").requests.expect("requests");
    assert_eq!(requests[0].device_class_name.as_deref(), Some("net"));
    assert_eq!(requests[0].count, Some(2));
    assert_eq!(requests[1].first_available.as_ref().expect("alternatives")[0].name, "fast");
    assert_eq!(requests[1].device_class_name, None);
    assert_eq!(from_wire(ApiVersion::V1beta1, wire), claim());
}

#[test]
fn v1beta2_differs_in_its_name_only() {
    for object in [slice(), claim()] {
        let wire = to_wire(ApiVersion::V1beta2, object.clone());
        assert_eq!(wire["apiVersion"], "resource.k8s.io/v1beta2");
        assert_eq!(wire["spec"], object["spec"]);
        assert_eq!(from_wire(ApiVersion::V1beta2, wire), object);
    }
    let typed: v1beta2::ResourceClaim =
        serde_json::from_value(to_wire(ApiVersion::V1beta2, claim())).expect("v1beta2 shape");
    assert!(typed.spec.devices.expect("devices").requests.expect("requests")[0].exactly.is_some());
}

#[test]
fn what_came_from_v1beta1_is_v1() {
    let typed: v1::ResourceClaim =
        serde_json::from_value(from_wire(ApiVersion::V1beta1, to_wire(ApiVersion::V1beta1, claim())))
            .expect("v1 shape");
    assert_eq!(typed.spec.devices.expect("devices").requests.expect("requests").len(), 2);
}

#[test]
fn other_kinds_and_odd_shapes_pass() {
    for odd in [json!(null), json!([]), json!({"kind": "ResourceSlice", "spec": {"devices": "x"}})] {
        let _ = from_wire(ApiVersion::V1beta1, to_wire(ApiVersion::V1beta1, odd));
    }
    let class = json!({"kind": "DeviceClass", "apiVersion": "resource.k8s.io/v1", "spec": {}});
    assert_eq!(to_wire(ApiVersion::V1beta1, class)["spec"], json!({}));
}
