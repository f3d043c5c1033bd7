//! Records of endpoints, and their copies where programs find them without a search.

use aya::maps::{MapError, PerCpuValues};
use netferry_common::{Endpoint, Fast, Slot, slot};

use super::{Tables, found, gone};
use crate::datapath::EndpointId;

impl Tables {
    /// Writes a record. Until all is written, its slot is closed, and programs look the record up.
    pub(in crate::datapath) fn put_record(
        &mut self,
        id: EndpointId,
        record: &Endpoint,
    ) -> Result<(), MapError> {
        let before = self.close_slot(id)?;
        self.endpoints.insert(id, record, 0)?;
        if before.endpoint != id {
            // Two endpoints may have ids that share a slot: the first keeps it, the other has none.
            if found(self.endpoints.get(&before.endpoint, 0))?.is_some() {
                return Ok(());
            }
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
            let zeros = PerCpuValues::try_from(vec![Fast::ZERO; cpus]).map_err(MapError::IoError)?;
            self.fast.set(slot::of(id), zeros, 0)?;
        }
        self.slots.set(slot::of(id), Slot::new(id, record), 0)
    }

    /// Removes a record. Its slot stays closed, in its name: so it is known which ids there have been.
    pub(super) fn remove_record(&mut self, id: EndpointId) -> Result<(), MapError> {
        self.close_slot(id)?;
        gone(self.endpoints.remove(&id))
    }

    /// Says what the slot was.
    fn close_slot(&mut self, id: EndpointId) -> Result<Slot, MapError> {
        let before = self.slots.get(&slot::of(id), 0)?;
        if before.endpoint == id && before != before.closed() {
            self.slots.set(slot::of(id), before.closed(), 0)?;
        }
        Ok(before)
    }

    /// Whether a slot says what the record does, or is another endpoint's.
    pub(in crate::datapath) fn slot_follows(
        &self,
        id: EndpointId,
        record: &Endpoint,
    ) -> Result<bool, MapError> {
        let there = self.slots.get(&slot::of(id), 0)?;
        Ok(there == Slot::new(id, record)
            || there.endpoint != id && found(self.endpoints.get(&there.endpoint, 0))?.is_some())
    }

    /// The highest id that an endpoint ever had.
    pub(in crate::datapath) fn last_endpoint(&self) -> Result<EndpointId, MapError> {
        let mut last = 0;
        for slot in self.slots.iter() {
            last = last.max(slot?.endpoint);
        }
        Ok(last)
    }

    /// Frames of an endpoint that took the short way, on all CPUs.
    pub(super) fn fast(&self, id: EndpointId) -> Result<Fast, MapError> {
        if self.slots.get(&slot::of(id), 0)?.endpoint != id {
            return Ok(Fast::ZERO);
        }
        let cpus = self.fast.get(&slot::of(id), 0)?;
        Ok(cpus.iter().fold(Fast::ZERO, Fast::and))
    }
}
