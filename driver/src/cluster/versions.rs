//! The versions of resource.k8s.io on the wire. Inside the driver everything is v1; these functions turn the
//! JSON of a ResourceSlice or ResourceClaim into the served version's shape and back.
//!
//! Shapes are those of kubernetes `staging/src/k8s.io/api/resource/{v1,v1beta2,v1beta1}/types.go`:
//! v1beta2 and v1 are the same; v1beta1 keeps a device's facts under `basic`, and a request's facts flat
//! beside its name instead of under `exactly`.

use std::fmt;

use serde_json::{Map, Value};

/// The API group.
pub const GROUP: &str = "resource.k8s.io";

/// A version of resource.k8s.io that the driver speaks; the order is the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ApiVersion {
    /// Kubernetes 1.32.
    V1beta1,
    /// Kubernetes 1.33.
    V1beta2,
    /// Kubernetes 1.34 and later.
    V1,
}

impl ApiVersion {
    /// Every version, the preferred one first.
    pub const PREFERRED: [Self; 3] = [Self::V1, Self::V1beta2, Self::V1beta1];

    /// The best of the versions a server serves, or `None` if it serves none that the driver speaks.
    pub fn choose<'a>(served: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        served.into_iter().filter_map(Self::parse).max()
    }

    /// From `v1`, `v1beta2`, `v1beta1`.
    #[must_use]
    pub fn parse(version: &str) -> Option<Self> {
        Self::PREFERRED.into_iter().find(|known| known.version() == version)
    }

    /// `v1`, `v1beta2`, `v1beta1`.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1beta2 => "v1beta2",
            Self::V1beta1 => "v1beta1",
        }
    }

    /// `resource.k8s.io/<version>`, as it stands in `apiVersion`.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "resource.k8s.io/v1",
            Self::V1beta2 => "resource.k8s.io/v1beta2",
            Self::V1beta1 => "resource.k8s.io/v1beta1",
        }
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.version())
    }
}

/// From the v1 shape to the shape of `version`, `apiVersion` included. `kind` decides what is converted;
/// kinds that have one shape in all versions pass through.
#[must_use]
pub fn to_wire(version: ApiVersion, mut object: Value) -> Value {
    set_api_version(&mut object, version);
    if version == ApiVersion::V1beta1 {
        each_device(&mut object, wrap_device);
        each_request(&mut object, flatten_request);
    }
    object
}

/// From the shape of `version` to the v1 shape, `apiVersion` included.
#[must_use]
pub fn from_wire(version: ApiVersion, mut object: Value) -> Value {
    set_api_version(&mut object, ApiVersion::V1);
    if version == ApiVersion::V1beta1 {
        each_device(&mut object, unwrap_device);
        each_request(&mut object, nest_request);
    }
    object
}

fn set_api_version(object: &mut Value, version: ApiVersion) {
    if let Some(object) = object.as_object_mut() {
        object.insert("apiVersion".to_owned(), version.api_version().into());
    }
}

fn is_kind(object: &Value, kind: &str) -> bool {
    object.get("kind").and_then(Value::as_str) == Some(kind)
}

fn each(list: Option<&mut Value>, change: fn(&mut Map<String, Value>)) {
    for item in list.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(item) = item.as_object_mut() {
            change(item);
        }
    }
}

fn each_device(object: &mut Value, change: fn(&mut Map<String, Value>)) {
    if is_kind(object, "ResourceSlice") {
        each(object.pointer_mut("/spec/devices"), change);
    }
}

fn each_request(object: &mut Value, change: fn(&mut Map<String, Value>)) {
    if is_kind(object, "ResourceClaim") {
        each(object.pointer_mut("/spec/devices/requests"), change);
    }
}

fn wrap_device(device: &mut Map<String, Value>) {
    let name = device.remove("name");
    let basic = std::mem::take(device);
    device.extend(name.map(|name| ("name".to_owned(), name)));
    device.insert("basic".to_owned(), Value::Object(basic));
}

fn unwrap_device(device: &mut Map<String, Value>) {
    if let Some(Value::Object(basic)) = device.remove("basic") {
        device.extend(basic);
    }
}

fn flatten_request(request: &mut Map<String, Value>) {
    if let Some(Value::Object(exactly)) = request.remove("exactly") {
        request.extend(exactly);
    }
}

fn nest_request(request: &mut Map<String, Value>) {
    // `name` and `firstAvailable` stay; everything else is what v1 keeps under `exactly`.
    let stays = |key: &str| matches!(key, "name" | "firstAvailable");
    let (stay, exactly): (Map<_, _>, Map<_, _>) =
        std::mem::take(request).into_iter().partition(|(key, _)| stays(key));
    *request = stay;
    if !exactly.is_empty() {
        request.insert("exactly".to_owned(), Value::Object(exactly));
    }
}

#[cfg(test)]
mod tests;
