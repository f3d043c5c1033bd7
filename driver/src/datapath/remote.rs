//! Members on other nodes in the map of members. Those on this node are attach's, and are never touched here.

use std::net::IpAddr;

use netferry_common::{Addr, Member};

use super::{AyaDatapath, DatapathError, control::NetworkMember};
use crate::network::{
    NetworkId,
    follow::Members,
    members::{Change, Remote},
};

impl Members for AyaDatapath {
    fn put(&self, change: &Change) -> Result<bool, DatapathError> {
        let Change { network, address, member } = *change;
        match member {
            Some(Remote { mac, node }) => {
                self.set_remote_member(&NetworkMember { network, address, endpoint: None, node, mac })
            }
            None => self.remove_remote_member(network, address),
        }
    }

    fn remote(&self) -> Result<Vec<Change>, DatapathError> {
        let members = self.members()?.into_iter().filter(|member| member.endpoint.is_none());
        let change = |member: NetworkMember| Change {
            network: member.network,
            address: member.address,
            member: Some(Remote { mac: member.mac, node: member.node }),
        };
        Ok(members.map(change).collect())
    }
}

impl AyaDatapath {
    /// As [`Self::set_member`], unless the address is a member's on this node. Returns whether it was written.
    fn set_remote_member(&self, member: &NetworkMember) -> Result<bool, DatapathError> {
        let node = member.node.map_or(Addr::UNSPECIFIED, Addr::from);
        let value = Member { node, ..Member::new(0, member.mac.0) };
        self.change_remote(member.network, member.address, Some(value))
    }

    fn remove_remote_member(&self, network: NetworkId, address: IpAddr) -> Result<bool, DatapathError> {
        self.change_remote(network, address, None)
    }

    /// The lock is held from the look to the write: attach cannot come between.
    fn change_remote(
        &self,
        network: NetworkId,
        address: IpAddr,
        value: Option<Member>,
    ) -> Result<bool, DatapathError> {
        let mut written = self.written();
        let before = written.tables.member(network, address)?;
        if before.is_some_and(|member| member.endpoint != 0) {
            return Ok(false);
        }
        written.tables.set_member(network, address, value)?;
        Ok(true)
    }
}
