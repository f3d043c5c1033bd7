//! Links on other links: made, and made anew.

use super::{FakeLink, FakeLinks};
use crate::link::{Home, KindData, Link, LinkError, Namespace, Recipe, Upper};

impl FakeLink {
    /// The same as a made link.
    #[must_use]
    pub fn of_kind(mut self, kind: &str) -> Self {
        self.home.link.kind = Some(kind.to_owned());
        self.home.link.permanent_mac = None;
        self
    }

    /// The same with a record of how it was made, as [`Home::recipe`] is read where its parent is.
    #[must_use]
    pub fn made_by(mut self, recipe: Recipe) -> Self {
        self.home.recipe = Some(recipe);
        self
    }
}

impl FakeLinks {
    pub(super) fn add_upper(&self, upper: &Upper) -> Result<u32, LinkError> {
        let mut state =
            self.change(&Namespace::Host, upper.parent, format!("make {}", upper.sub_interface))?;
        let mtu = state.link(&Namespace::Host, upper.parent)?.home.link.mtu;
        state.free(&Namespace::Host, &upper.name)?;
        let ifindex = state.next_index();
        let mut link = FakeLink::hardware(&upper.name, ifindex).of_kind(upper.sub_interface.kind());
        link.home.link = Link { up: false, mtu, mac: upper.mac.or(link.home.link.mac), ..link.home.link };
        state.links(&Namespace::Host)?.insert(ifindex, link);
        Ok(ifindex)
    }

    /// As the kernel: the new link has its name, MAC, MTU, and its index if that is free; nothing else.
    pub(super) fn make_anew(&self, home: &Home) -> Result<u32, LinkError> {
        let name = &home.link.name;
        let mut state = self.change(&Namespace::Host, home.link.ifindex, format!("make {name} anew"))?;
        let Some(recipe) = &home.recipe else { return Err(LinkError::NoRecipe { link: name.clone() }) };
        if let Some(parent) = &recipe.parent {
            let mut links = state.links(&Namespace::Host)?.values().map(|link| &link.home.link);
            parent.index(name, links.find(|link| link.name == parent.name))?;
        }
        state.free(&Namespace::Host, name)?;
        let mut ends = vec![home];
        if let KindData::Veth(veth) = &recipe.data {
            state.free(&Namespace::Host, &veth.peer.link.name)?;
            ends.push(&veth.peer);
        }
        let mut made = Vec::new();
        for end in &ends {
            let taken = state.links(&Namespace::Host)?.contains_key(&end.link.ifindex);
            let ifindex = if taken { state.next_index() } else { end.link.ifindex };
            let mut link = FakeLink::hardware(&end.link.name, ifindex).of_kind(recipe.data.kind());
            let Link { mac, mtu, .. } = end.link;
            link.home.link = Link { up: false, mac, mtu, ..link.home.link };
            link.home.recipe.clone_from(&end.recipe);
            state.links(&Namespace::Host)?.insert(ifindex, link);
            made.push((Namespace::Host.to_string(), ifindex));
        }
        let own = made[0].1;
        if let [_, peer] = ends[..] {
            let other = state.link(&Namespace::Host, made[1].1)?;
            other.home = Home { link: Link { ifindex: made[1].1, ..peer.link.clone() }, ..peer.clone() };
            state.pairs.push([made[0].clone(), made[1].clone()]);
        }
        Ok(own)
    }
}
