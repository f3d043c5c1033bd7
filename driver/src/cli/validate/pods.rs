//! What pods ask for: claims and templates that exist.

use serde_json::Value;

use super::{Problem, claims::All, objects::Object};
use crate::claim::config::FieldError;

/// Check the claims that the pods of an object name. What is in none of the files may be in the cluster, unless the files have
/// claims of the namespace.
pub(super) fn check(object: &Object, all: &All<'_>) -> Vec<Problem> {
    let places = ["/spec", "/spec/template/spec", "/spec/jobTemplate/spec/template/spec"];
    let mut problems = Vec::new();
    for place in places {
        let Some(spec) = object.value.pointer(place) else { continue };
        let path = place[1..].replace('/', ".");
        let claims = spec.get("resourceClaims").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut names = Vec::new();
        for (index, claim) in claims.iter().enumerate() {
            let field = |name: &str| format!("{path}.resourceClaims[{index}].{name}");
            let text = |name: &str| claim.get(name).and_then(Value::as_str);
            names.extend(text("name"));
            for (name, kind) in [
                ("resourceClaimName", "ResourceClaim"),
                ("resourceClaimTemplateName", "ResourceClaimTemplate"),
            ] {
                if let Some(wanted) = text(name)
                    && let Some(allowed) = all.no_claim(kind, object.namespace(), wanted)
                {
                    problems.push(Problem::error(FieldError::new(field(name), wanted, allowed)));
                }
            }
            if text("resourceClaimName").is_some() == text("resourceClaimTemplateName").is_some() {
                let allowed = "exactly one of resourceClaimName and resourceClaimTemplateName";
                let field = format!("{path}.resourceClaims[{index}]");
                problems.push(Problem::error(FieldError::new(field, claim, allowed)));
            }
        }
        for list in ["containers", "initContainers"] {
            let containers = spec.get(list).and_then(Value::as_array);
            for (index, container) in containers.into_iter().flatten().enumerate() {
                let claims = container.pointer("/resources/claims").and_then(Value::as_array);
                for (nth, claim) in claims.into_iter().flatten().enumerate() {
                    let name = claim.get("name").and_then(Value::as_str).unwrap_or_default();
                    if !names.contains(&name) {
                        let field = format!("{path}.{list}[{index}].resources.claims[{nth}].name");
                        let allowed = format!("a name of {path}.resourceClaims: {}", names.join(", "));
                        problems.push(Problem::error(FieldError::new(field, name, allowed)));
                    }
                }
            }
        }
    }
    problems
}
