//! The API server's answers in the terms of the seam.

use std::{error::Error, fmt};

use crate::cluster::ClusterError;

/// What a request is about, for its errors.
pub(super) struct Object {
    /// Kind.
    pub(super) kind: &'static str,
    /// `namespace/name` or `name`.
    pub(super) name: String,
    verb: &'static str,
}

impl Object {
    pub(super) fn new(kind: &'static str, name: impl Into<String>, verb: &'static str) -> Self {
        Self { kind, name: name.into(), verb }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.verb, self.kind, self.name)
    }
}

pub(super) fn unavailable(
    action: impl Into<String>,
    source: impl Into<Box<dyn Error + Send + Sync>>,
) -> ClusterError {
    ClusterError::Unavailable { action: action.into(), source: source.into() }
}

pub(super) fn refused(object: &Object, code: u16, message: String) -> ClusterError {
    ClusterError::Refused { kind: object.kind, name: object.name.clone(), code, message }
}

pub(super) fn from_kube(object: &Object, error: kube::Error) -> ClusterError {
    let kube::Error::Api(status) = error else {
        return unavailable(object.to_string(), error);
    };
    let (kind, name, message) = (object.kind, object.name.clone(), status.message.clone());
    match status.code {
        404 => ClusterError::NotFound { kind, name },
        // 409 is also AlreadyExists (create) and, for an apply with a uid whose object is gone, "no existing
        // object was found": all are cured by reading again.
        409 => ClusterError::Conflict { kind, name, message },
        // Too many requests and server errors pass; 401 too: a service account token is renewed under us.
        401 | 408 | 429 | 500.. => unavailable(object.to_string(), kube::Error::Api(status)),
        code => ClusterError::Refused { kind, name, code, message },
    }
}

/// An apply names the claim's uid. The server answers a mismatch with 422 and `metadata.uid` as the field
/// (`ValidateObjectMetaAccessorUpdate`: uid is immutable), which for the caller is a conflict: the claim is
/// another one now.
pub(super) fn recreated(error: ClusterError) -> ClusterError {
    match error {
        ClusterError::Refused { kind, name, code: 422, message } if message.contains("metadata.uid") => {
            ClusterError::Conflict { kind, name, message }
        }
        other => other,
    }
}
