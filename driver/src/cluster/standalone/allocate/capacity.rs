//! What a request uses up of a device's capacities, and what is left
//! (kubernetes `dynamic-resource-allocation/structured`, feature DRAConsumableCapacity).

use std::collections::BTreeMap;

use k8s_openapi::{
    api::resource::v1::{CapacityRequestPolicy, Device},
    apimachinery::pkg::api::resource::Quantity,
};

use super::Share;
use crate::selector::Quantity as Number;

/// A quantity that a claim wants.
pub(super) fn parse(quantity: &Quantity) -> Result<(), String> {
    quantity.0.parse::<Number>().map(drop)
}

/// Whether several claims may have the device.
pub(super) fn is_shared(device: &Device) -> bool {
    device.allow_multiple_allocations == Some(true)
}

/// What the request uses up, by capacity; `None` if the device cannot give it to anybody. Of a device that is not
/// shared the whole is given, but it must have as much as is asked for.
pub(super) fn consumed(
    device: &Device,
    wanted: &BTreeMap<String, Quantity>,
) -> Option<BTreeMap<String, Quantity>> {
    let capacities = device.capacity.as_ref();
    if wanted.keys().any(|name| !capacities.is_some_and(|all| all.contains_key(name))) {
        return None;
    }
    let mut consumed = BTreeMap::new();
    for (name, capacity) in capacities.into_iter().flatten() {
        let whole = number(&capacity.value)?;
        let asked = wanted.get(name);
        let amount = if is_shared(device) {
            match &capacity.request_policy {
                Some(policy) => by_policy(policy, asked, &capacity.value)?,
                None => asked.unwrap_or(&capacity.value).clone(),
            }
        } else {
            asked.unwrap_or(&capacity.value).clone()
        };
        if number(&amount)? > whole {
            return None;
        }
        consumed.insert(name.clone(), amount);
    }
    Some(consumed)
}

/// What the policy makes of what was asked for: the next value that it allows.
fn by_policy(policy: &CapacityRequestPolicy, asked: Option<&Quantity>, whole: &Quantity) -> Option<Quantity> {
    let Some(asked) = asked else {
        return Some(policy.default.as_ref().unwrap_or(whole).clone());
    };
    let amount = number(asked)?;
    if let Some(values) = policy.valid_values.as_ref().filter(|values| !values.is_empty()) {
        return values.iter().find(|value| number(value).is_some_and(|value| value >= amount)).cloned();
    }
    let Some(range) = &policy.valid_range else { return Some(asked.clone()) };
    let least = number(&range.min)?;
    let rounded = match range.step.as_ref().map(number) {
        _ if amount <= least => return Some(range.min.clone()),
        Some(step) => {
            let step = step.filter(|step| *step > 0)?;
            let steps = (amount - least + step - 1) / step;
            least.checked_add(steps.checked_mul(step)?)?
        }
        None => amount,
    };
    if range.max.as_ref().is_some_and(|max| number(max).is_none_or(|max| rounded > max)) {
        return None;
    }
    Some(if rounded == amount { asked.clone() } else { written(rounded) })
}

/// In units of 10⁻⁹.
fn number(quantity: &Quantity) -> Option<i128> {
    quantity.0.parse::<Number>().ok().map(|number| number.0)
}

fn written(number: i128) -> Quantity {
    let whole = number % 1_000_000_000 == 0;
    Quantity(if whole { (number / 1_000_000_000).to_string() } else { format!("{number}n") })
}

/// What is left of a device.
#[derive(Clone, Debug)]
pub(super) struct Room {
    free: bool,
    /// In units of 10⁻⁹, by capacity.
    left: BTreeMap<String, i128>,
}

impl Room {
    /// What `shares` leave of `device`.
    pub(super) fn of(device: &Device, shares: &[Share]) -> Self {
        let capacities = device.capacity.iter().flatten();
        let mut left: BTreeMap<String, i128> =
            capacities.map(|(name, capacity)| (name.clone(), number(&capacity.value).unwrap_or(0))).collect();
        for (name, amount) in shares.iter().flat_map(|share| &share.consumed) {
            if let Some(left) = left.get_mut(name) {
                *left = left.saturating_sub(number(amount).unwrap_or(i128::MAX));
            }
        }
        Self { free: is_shared(device) || shares.is_empty(), left }
    }

    /// Whether the request still fits.
    pub(super) fn fits(&self, device: &Device, wanted: &BTreeMap<String, Quantity>) -> bool {
        self.free
            && consumed(device, wanted).is_some_and(|consumed| {
                !is_shared(device)
                    || consumed.iter().all(|(name, amount)| {
                        number(amount)
                            .is_some_and(|amount| self.left.get(name).is_some_and(|left| *left >= amount))
                    })
            })
    }

    /// Give it away.
    pub(super) fn take(&mut self, device: &Device, wanted: &BTreeMap<String, Quantity>) {
        self.change(device, wanted, -1, false);
    }

    /// Undo [`Self::take`].
    pub(super) fn give_back(&mut self, device: &Device, wanted: &BTreeMap<String, Quantity>) {
        self.change(device, wanted, 1, true);
    }

    fn change(&mut self, device: &Device, wanted: &BTreeMap<String, Quantity>, sign: i128, free: bool) {
        if !is_shared(device) {
            self.free = free;
            return;
        }
        for (name, amount) in consumed(device, wanted).into_iter().flatten() {
            if let Some(left) = self.left.get_mut(&name) {
                *left = left.saturating_add(sign * number(&amount).unwrap_or(0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn consumes(policy: &serde_json::Value, asked: Option<&str>) -> Option<String> {
        let device: Device = serde_json::from_value(json!({
            "name": "d", "allowMultipleAllocations": true,
            "capacity": {"c": {"value": "10", "requestPolicy": policy}},
        }))
        .expect("a device");
        let wanted = asked.map(|asked| ("c".to_owned(), Quantity(asked.to_owned()))).into_iter().collect();
        consumed(&device, &wanted).map(|consumed| consumed["c"].0.clone())
    }

    #[test]
    fn a_policy_rounds_up_and_refuses() {
        let values = json!({"default": "1", "validValues": ["1", "4"]});
        let range = json!({"default": "2", "validRange": {"min": "2", "max": "8", "step": "3"}});
        let cases = [
            (&values, None, Some("1")),
            (&values, Some("2"), Some("4")),
            (&values, Some("5"), None),
            (&range, None, Some("2")),
            (&range, Some("1"), Some("2")),
            (&range, Some("3"), Some("5")),
            (&range, Some("6"), Some("8")),
            (&range, Some("9"), None),
            (&json!(null), None, Some("10")),
            (&json!(null), Some("3"), Some("3")),
            (&json!(null), Some("11"), None),
        ];
        for (policy, asked, wanted) in cases {
            assert_eq!(consumes(policy, asked).as_deref(), wanted, "{policy} {asked:?}");
        }
    }

    #[test]
    fn an_unknown_capacity_is_not_there() {
        let device: Device = serde_json::from_value(json!({"name": "d"})).expect("a device");
        let wanted = BTreeMap::from([("c".to_owned(), Quantity("1".to_owned()))]);
        assert_eq!(consumed(&device, &wanted), None);
        assert_eq!(consumed(&device, &BTreeMap::new()), Some(BTreeMap::new()));
    }
}
