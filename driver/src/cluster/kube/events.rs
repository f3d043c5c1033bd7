//! Events of events.k8s.io/v1. A repeat within the window is counted in the first one's series instead of
//! making another object.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{api::events::v1::Event as ApiEvent, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{KubeCluster, errors::Object};
use crate::cluster::{ClusterError, Event, event_object};

/// A repeat later than this makes a new Event (as client-go's recorder does).
const WINDOW: Duration = Duration::from_mins(6);
/// Series kept in memory; the longest silent one is forgotten for a new one.
const MAX_SERIES: usize = 512;
/// Shortest time between two writes of one series.
const MIN_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Entry {
    namespace: String,
    name: String,
    count: i32,
    seen: Instant,
    written: Instant,
}

/// Events written lately, by what they say.
#[derive(Default)]
pub(super) struct Series(Mutex<HashMap<String, Entry>>);

/// What to do with an Event.
enum Next {
    Create,
    Count { namespace: String, name: String, count: i32 },
    Nothing,
}

impl Series {
    fn next(&self, key: &str, now: Instant) -> Next {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| now.duration_since(entry.seen) < WINDOW);
        let Some(entry) = entries.get_mut(key) else { return Next::Create };
        entry.count = entry.count.saturating_add(1);
        entry.seen = now;
        if entry.count > 3 && now.duration_since(entry.written) < MIN_INTERVAL {
            return Next::Nothing;
        }
        entry.written = now;
        Next::Count { namespace: entry.namespace.clone(), name: entry.name.clone(), count: entry.count }
    }

    fn created(&self, key: String, namespace: String, name: String, now: Instant) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_SERIES
            && let Some(oldest) =
                entries.iter().min_by_key(|(_, entry)| entry.seen).map(|(key, _)| key.clone())
        {
            entries.remove(&oldest);
        }
        entries.insert(key, Entry { namespace, name, count: 1, seen: now, written: now });
    }

    fn forget(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl KubeCluster {
    pub(super) async fn record(&self, event: &Event) -> Result<(), ClusterError> {
        let key = format!("{event:?}");
        let now = Instant::now();
        if let Next::Count { namespace, name, count } = match self.series.next(&key, now) {
            Next::Nothing => return Ok(()),
            next => next,
        } {
            let object = Object::new("Event", format!("{namespace}/{name}"), "count up");
            let body = json!({"series": {"count": count, "lastObservedTime": MicroTime(Timestamp::now())}});
            let api: Api<ApiEvent> = Api::namespaced(self.client.clone(), &namespace);
            let patch = Patch::Merge(&body);
            match self.request(&object, api.patch(&name, &PatchParams::default(), &patch)).await {
                Ok(_) => return Ok(()),
                // Expired at the server: begin a new one.
                Err(ClusterError::NotFound { .. }) => self.series.forget(&key),
                Err(error) => return Err(error),
            }
        }
        let body = event_object::object(event, &self.driver, &self.node, Timestamp::now());
        let (namespace, name) = (
            body.metadata.namespace.clone().unwrap_or_default(),
            body.metadata.name.clone().unwrap_or_default(),
        );
        let object = Object::new("Event", format!("{namespace}/{name}"), "create");
        let api: Api<ApiEvent> = Api::namespaced(self.client.clone(), &namespace);
        self.request(&object, api.create(&PostParams::default(), &body)).await?;
        self.series.created(key, namespace, name, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_is_counted_and_a_stranger_is_not() {
        let series = Series::default();
        let start = Instant::now();
        assert!(matches!(series.next("a", start), Next::Create));
        series.created("a".to_owned(), "ns".to_owned(), "e".to_owned(), start);
        assert!(matches!(series.next("a", start), Next::Count { count: 2, .. }));
        assert!(matches!(series.next("a", start), Next::Count { count: 3, .. }));
        assert!(matches!(series.next("a", start), Next::Nothing), "a flood is not written one by one");
        assert!(matches!(series.next("a", start + MIN_INTERVAL), Next::Count { count: 5, .. }));
        assert!(matches!(series.next("b", start), Next::Create));
        assert!(matches!(series.next("a", start + MIN_INTERVAL + WINDOW), Next::Create));
    }

    #[test]
    fn memory_is_bounded() {
        let series = Series::default();
        let now = Instant::now();
        for i in 0..2 * MAX_SERIES {
            series.created(i.to_string(), String::new(), String::new(), now);
        }
        assert_eq!(series.0.lock().expect("lock").len(), MAX_SERIES);
    }
}
