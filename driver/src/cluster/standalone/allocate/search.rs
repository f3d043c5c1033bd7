//! Choosing devices: depth first over requests, alternatives and devices, within a budget.

use k8s_openapi::api::resource::v1::{Device, DeviceAttribute, DeviceConstraint};

use super::{
    AllocateError, Candidate, Question,
    capacity::{Room, is_shared},
    requests::{Alternative, MAX_DEVICES, Wants},
};

/// Steps after which a search is given up. A node has few devices; this bounds a claim that is made to be hard.
const BUDGET: usize = 200_000;

/// What was chosen for one request.
#[derive(Clone, Debug)]
pub(super) struct Pick<'a> {
    /// How the request is satisfied.
    pub(super) alternative: &'a Alternative<'a>,
    /// Candidates by index.
    pub(super) devices: Vec<usize>,
}

/// Devices of some requests must have the same, or each another, value of an attribute.
#[derive(Debug)]
pub(super) struct Constraint<'a> {
    requests: Option<&'a Vec<String>>,
    attribute: &'a str,
    distinct: bool,
}

/// The claim's constraints.
pub(super) fn constraints<'a>(question: &Question<'a>) -> Result<Vec<Constraint<'a>>, AllocateError> {
    let devices = question.claim.spec.devices.as_ref();
    let constraints = devices.and_then(|devices| devices.constraints.as_ref()).into_iter().flatten();
    constraints
        .enumerate()
        .map(|(index, constraint)| {
            let DeviceConstraint { distinct_attribute, match_attribute, requests } = constraint;
            let (attribute, distinct) = match (match_attribute, distinct_attribute) {
                (Some(attribute), None) => (attribute.as_str(), false),
                (None, Some(attribute)) => (attribute.as_str(), true),
                _ => {
                    return Err(AllocateError::Invalid {
                        field: format!("spec.devices.constraints[{index}]"),
                        message: "exactly one of matchAttribute and distinctAttribute must be set".to_owned(),
                    });
                }
            };
            Ok(Constraint { requests: requests.as_ref().filter(|all| !all.is_empty()), attribute, distinct })
        })
        .collect()
}

struct Search<'a> {
    driver: &'a str,
    requests: &'a [Vec<Alternative<'a>>],
    constraints: &'a [Constraint<'a>],
    candidates: &'a [Candidate<'a>],
    room: Vec<Room>,
    picks: Vec<Pick<'a>>,
    steps: usize,
}

/// Devices for every request, or none.
pub(super) fn search<'a>(
    driver: &'a str,
    requests: &'a [Vec<Alternative<'a>>],
    constraints: &'a [Constraint<'a>],
    candidates: &'a [Candidate<'a>],
    room: &[Room],
) -> Option<Vec<Pick<'a>>> {
    let room = room.to_vec();
    let mut search = Search { driver, requests, constraints, candidates, room, picks: Vec::new(), steps: 0 };
    search.next_request().then_some(search.picks)
}

impl<'a> Search<'a> {
    fn next_request(&mut self) -> bool {
        let requests = self.requests;
        let Some(alternatives) = requests.get(self.picks.len()) else {
            return self.picks.iter().map(|pick| pick.devices.len()).sum::<usize>() <= MAX_DEVICES;
        };
        alternatives.iter().any(|alternative| {
            self.picks.push(Pick { alternative, devices: Vec::new() });
            let found = self.next_device(alternative, 0);
            if !found {
                self.picks.pop();
            }
            found
        })
    }

    /// Choose the next device of the last request from `eligible[from..]`.
    fn next_device(&mut self, alternative: &'a Alternative<'a>, from: usize) -> bool {
        let chosen = self.picks.last().map_or(0, |pick| pick.devices.len());
        let eligible = &alternative.eligible;
        let (wanted, optional) = match alternative.wants {
            Wants::Exactly(count) => (count, true),
            // All of them or nothing: none may be left out.
            Wants::All => (eligible.len().max(1), false),
        };
        if chosen == wanted {
            return self.next_request();
        }
        for (place, &index) in eligible.iter().enumerate().skip(from) {
            self.steps += 1;
            if self.steps > BUDGET {
                return false;
            }
            let device = self.candidates[index].device;
            let has_room = alternative.admin || self.room[index].fits(device, &alternative.capacity);
            if has_room && self.fits(alternative, index) {
                self.take(alternative, index);
                // A shared device may be given to one request several times.
                let again = optional && is_shared(device) && !alternative.admin;
                if self.next_device(alternative, if again { place } else { place + 1 }) {
                    return true;
                }
                self.give_back(alternative, index);
            }
            if !optional {
                return false;
            }
        }
        false
    }

    fn take(&mut self, alternative: &Alternative<'_>, index: usize) {
        if !alternative.admin {
            self.room[index].take(self.candidates[index].device, &alternative.capacity);
        }
        if let Some(pick) = self.picks.last_mut() {
            pick.devices.push(index);
        }
    }

    fn give_back(&mut self, alternative: &Alternative<'_>, index: usize) {
        if !alternative.admin {
            self.room[index].give_back(self.candidates[index].device, &alternative.capacity);
        }
        if let Some(pick) = self.picks.last_mut() {
            pick.devices.pop();
        }
    }

    fn fits(&self, alternative: &Alternative<'_>, index: usize) -> bool {
        let meant = |constraint: &Constraint<'_>, alternative: &Alternative<'_>| {
            let by = |all: &Vec<String>| all.iter().any(|request| alternative.is_meant_by(request));
            constraint.requests.is_none_or(by)
        };
        self.constraints.iter().filter(|constraint| meant(constraint, alternative)).all(|constraint| {
            let value =
                |index: usize| attribute(self.driver, self.candidates[index].device, constraint.attribute);
            let Some(ours) = value(index) else { return false };
            let picks = self.picks.iter().filter(|pick| meant(constraint, pick.alternative));
            picks
                .flat_map(|pick| &pick.devices)
                .all(|other| (value(*other) == Some(ours)) != constraint.distinct)
        })
    }
}

/// An attribute by its full name; one without a domain belongs to the driver's.
fn attribute<'a>(driver: &str, device: &'a Device, name: &str) -> Option<&'a DeviceAttribute> {
    let attributes = device.attributes.as_ref()?;
    let short = || name.strip_prefix(driver)?.strip_prefix('/');
    attributes.get(name).or_else(|| attributes.get(short()?))
}
