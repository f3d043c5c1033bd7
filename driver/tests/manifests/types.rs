//! Which type of Kubernetes an object is.

use super::*;

/// What the API server would not know of an object, or not take.
pub(crate) fn unknown_fields(object: &Value) -> Option<Vec<String>> {
    match object["kind"].as_str().unwrap_or_default() {
        "ClusterRole" => strict::<ClusterRole>(object).err(),
        "ClusterRoleBinding" => strict::<ClusterRoleBinding>(object).err(),
        "CustomResourceDefinition" => strict::<CustomResourceDefinition>(object).err(),
        "DaemonSet" => strict::<DaemonSet>(object).err(),
        "Deployment" => strict::<Deployment>(object).err(),
        "DeviceClass" => strict::<DeviceClass>(object).err(),
        "Namespace" => strict::<Namespace>(object).err(),
        "Network" => match validate::parse(&object["spec"]) {
            Ok(spec) => {
                let name = object["metadata"]["name"].as_str().unwrap();
                let errors = validate::validate(name, &spec);
                (!errors.is_empty()).then(|| errors.iter().map(ToString::to_string).collect())
            }
            Err(error) => Some(vec![error.to_string()]),
        },
        "Pod" => strict::<Pod>(object).err(),
        "ResourceClaim" => strict::<ResourceClaim>(object).err(),
        "ResourceClaimTemplate" => strict::<ResourceClaimTemplate>(object).err(),
        "PodMonitor" | "PrometheusRule" => {
            let wrong = operator::wrong(object);
            (!wrong.is_empty()).then_some(wrong)
        }
        "Role" => strict::<Role>(object).err(),
        "RoleBinding" => strict::<RoleBinding>(object).err(),
        "ServiceAccount" => strict::<ServiceAccount>(object).err(),
        "ValidatingAdmissionPolicy" => strict::<ValidatingAdmissionPolicy>(object).err(),
        "ValidatingAdmissionPolicyBinding" => strict::<ValidatingAdmissionPolicyBinding>(object).err(),
        kind => Some(vec![format!("kind {kind} is not checked here")]),
    }
}
