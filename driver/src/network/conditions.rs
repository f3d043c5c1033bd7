//! What the elected node says of the addresses of networks.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tokio::sync::watch;
use tracing::warn;

/// What the addresses of networks come to, by network.
pub type Conditions = BTreeMap<String, Condition>;

/// Says conditions of some of the networks; others may be said by somebody else.
#[derive(Debug)]
pub struct Told {
    sender: watch::Sender<Conditions>,
    mine: BTreeSet<String>,
}

impl Told {
    /// Who has not said anything yet.
    #[must_use]
    pub const fn new(sender: watch::Sender<Conditions>) -> Self {
        Self { sender, mine: BTreeSet::new() }
    }

    /// Say these, made of what was said before, and nothing more of other networks. What somebody should look at is
    /// logged.
    pub fn tell(&mut self, make: impl FnOnce(&Conditions) -> Conditions) {
        let mine = &mut self.mine;
        self.sender.send_if_modified(|all| {
            let told = make(all);
            let mut changed = false;
            for network in std::mem::replace(mine, told.keys().cloned().collect()) {
                if !told.contains_key(&network) {
                    changed |= all.remove(&network).is_some();
                }
            }
            for (network, condition) in told {
                let before = all.get(&network);
                if condition.status == "False" && before.is_none_or(|before| before.status != "False") {
                    let (reason, message) = (&condition.reason, &condition.message);
                    warn!(network, reason, "a network has no free address: {message}");
                }
                changed |= before != Some(&condition);
                all.insert(network, condition);
            }
            changed
        });
    }

    /// Say nothing any more.
    pub fn clear(&mut self) {
        self.tell(|_| Conditions::new());
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn each_speaks_of_its_own_networks() {
        let (sender, mut receiver) = watch::channel(Conditions::new());
        let (mut one, mut other) = (Told::new(sender.clone()), Told::new(sender));
        let condition = Condition {
            type_: "AddressesAvailable".to_owned(),
            status: "False".to_owned(),
            reason: "SubnetExhausted".to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        let said = |networks: &[&str]| -> Conditions {
            networks.iter().map(|name| ((*name).to_owned(), condition.clone())).collect()
        };
        one.tell(|_| said(&["blue", "red"]));
        other.tell(|_| said(&["green"]));
        assert_eq!(*receiver.borrow_and_update(), said(&["blue", "green", "red"]));
        one.tell(|before| {
            assert_eq!(before.len(), 3);
            said(&["blue"])
        });
        assert_eq!(*receiver.borrow_and_update(), said(&["blue", "green"]));
        one.tell(|_| said(&["blue"]));
        assert!(!receiver.has_changed().expect("a sender"), "nothing is other");
        other.clear();
        assert_eq!(*receiver.borrow_and_update(), said(&["blue"]));
    }
}
