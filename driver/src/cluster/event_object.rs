//! An Event as an object of events.k8s.io/v1.

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event as ApiEvent},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};

use super::{Event, EventType, Subject, versions::ApiVersion};
use crate::network::spec;

/// `note` is refused above this by the server (pkg/apis/core/validation/events.go).
const NOTE_BYTES: usize = 1024;
/// `reportingInstance` is refused above this.
const INSTANCE_BYTES: usize = 128;

/// The object for `event`, which `driver` on `node` reports at `now`.
pub(super) fn object(event: &Event, driver: &str, node: &str, now: Timestamp) -> ApiEvent {
    let regarding = regarding(&event.subject, node);
    // An Event about something without a namespace must be in `default` (the same validation file).
    let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
    // Name as client-go makes it; the subject's own name may already fill the 253 bytes a name has.
    let subject = truncated(regarding.name.as_deref().unwrap_or_default(), 220).trim_end_matches(['.', '-']);
    let event_type = match event.event_type {
        EventType::Normal => "Normal",
        EventType::Warning => "Warning",
    };
    ApiEvent {
        metadata: ObjectMeta {
            name: Some(format!("{subject}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        action: Some(event.action.to_owned()),
        reason: Some(event.reason.to_owned()),
        note: Some(truncated(&event.note, NOTE_BYTES).to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(driver.to_owned()),
        reporting_instance: Some(truncated(node, INSTANCE_BYTES).to_owned()),
        type_: Some(event_type.to_owned()),
        ..ApiEvent::default()
    }
}

fn regarding(subject: &Subject, node: &str) -> ObjectReference {
    let (api_version, kind, namespace, name, uid) = match subject {
        Subject::Claim(claim) => (
            ApiVersion::V1.api_version(),
            "ResourceClaim",
            Some(claim.namespace.clone()),
            claim.name.as_str(),
            claim.uid.as_str(),
        ),
        Subject::Pod(pod) => ("v1", "Pod", Some(pod.namespace.clone()), pod.name.as_str(), pod.uid.as_str()),
        Subject::Network(network) => {
            (spec::API_VERSION, spec::KIND, None, network.name.as_str(), network.uid.as_str())
        }
        // The kubelet writes its node Events with the name as uid, and `kubectl describe node` looks for both.
        Subject::Node => ("v1", "Node", None, node, node),
    };
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace,
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

/// The longest start of `text` of at most `bytes` bytes that is still text.
fn truncated(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::ClaimRef;

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(truncated("aé", 2), "a");
        assert_eq!(truncated("aé", 3), "aé");
        assert_eq!(truncated("a", 9), "a");
    }

    #[test]
    fn the_limits_of_the_server_are_kept() {
        let claim = ClaimRef {
            namespace: "d".to_owned(),
            name: format!("{}.x", "c".repeat(251)),
            uid: "u".to_owned(),
        };
        let event = Event {
            subject: Subject::Claim(claim),
            event_type: EventType::Warning,
            reason: "AttachFailed",
            action: "Attach",
            note: "é".repeat(1000),
        };
        let object = object(&event, "netferry.dev", &"n".repeat(200), Timestamp::UNIX_EPOCH);
        assert!(object.metadata.name.expect("name").len() <= 253);
        assert_eq!(object.note.expect("note").len(), 1024);
        assert_eq!(object.reporting_instance.expect("instance").len(), 128);
        assert_eq!(object.metadata.namespace.as_deref(), Some("d"));
    }
}
