//! A device as CEL sees it.

use std::{any::Any, collections::BTreeMap, sync::Arc};

use cel::{
    DeclarationError, Env, ExecutionError, Value,
    common::{
        traits::{self, Container, Indexer, Iterable, Sizer},
        types::{CelBool, CelInt, CelString, Type},
        value::{CowVal, StaticVal, Val},
    },
};
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};

use super::{quantity::Quantity, version::Version};

static FACTS: Type = Type::new_unspecified_type("kubernetes.DRADevice");

/// A map from names to values, whose missing names are either an error or an empty map.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    entries: BTreeMap<String, Fact>,
    missing_is_empty: bool,
}

#[derive(Clone, Debug)]
struct Fact {
    /// The name once more, as CEL sees it when it goes through them.
    name: CelString<'static>,
    value: Arc<dyn Val>,
}

/// The variable `device`.
pub(super) fn of(driver: &str, device: &Device) -> Result<Facts, String> {
    let mut attributes = Facts { missing_is_empty: true, ..Facts::default() };
    let mut capacity = attributes.clone();
    let mut domains: BTreeMap<String, Facts> = BTreeMap::new();
    for (name, value) in device.attributes.iter().flatten() {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        let value = attribute(value).map_err(|error| format!("attribute {name:?}: {error}"))?;
        domains.entry(domain.to_owned()).or_default().insert(id, value);
    }
    attributes.take(std::mem::take(&mut domains));
    for (name, value) in device.capacity.iter().flatten() {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        let quantity: Quantity =
            value.value.0.parse().map_err(|error| format!("capacity {name:?}: {error}"))?;
        domains.entry(domain.to_owned()).or_default().insert(id, Arc::new(quantity));
    }
    capacity.take(domains);
    let shared = device.allow_multiple_allocations.unwrap_or(false);
    let entries: [(&str, Arc<dyn Val>); 4] = [
        ("driver", Arc::new(CelString::from(driver.to_owned()))),
        ("allowMultipleAllocations", Arc::new(CelBool::from(shared))),
        ("attributes", Arc::new(attributes)),
        ("capacity", Arc::new(capacity)),
    ];
    let mut facts = Facts::default();
    for (name, value) in entries {
        facts.insert(name, value);
    }
    Ok(facts)
}

fn attribute(attribute: &DeviceAttribute) -> Result<Arc<dyn Val>, String> {
    let list = |values: Value| -> Result<Arc<dyn Val>, String> {
        let list: Box<dyn Val> = values.try_into().map_err(|error: ExecutionError| error.to_string())?;
        Ok(Arc::from(list))
    };
    Ok(match attribute {
        DeviceAttribute { string: Some(text), .. } => Arc::new(CelString::from(text.clone())),
        DeviceAttribute { int: Some(number), .. } => Arc::new(CelInt::from(*number)),
        DeviceAttribute { bool: Some(truth), .. } => Arc::new(CelBool::from(*truth)),
        DeviceAttribute { version: Some(version), .. } => Arc::new(version.parse::<Version>()?),
        DeviceAttribute { strings: Some(list_of), .. } => list(Value::from(list_of.clone()))?,
        DeviceAttribute { ints: Some(list_of), .. } => list(Value::from(list_of.clone()))?,
        DeviceAttribute { bools: Some(list_of), .. } => list(Value::from(list_of.clone()))?,
        _ => return Err("it has no value of a known type".to_owned()),
    })
}

impl Facts {
    fn take(&mut self, domains: BTreeMap<String, Self>) {
        for (domain, facts) in domains {
            self.insert(&domain, Arc::new(facts));
        }
    }

    fn insert(&mut self, name: &str, value: Arc<dyn Val>) {
        let fact = Fact { name: CelString::from(name.to_owned()), value };
        self.entries.insert(name.to_owned(), fact);
    }

    fn name(index: &dyn Val) -> Result<String, ExecutionError> {
        index.downcast_ref::<CelString>().map(|name| name.inner().to_owned()).ok_or_else(|| {
            ExecutionError::UnexpectedType {
                got: index.get_type().name().to_owned(),
                want: "string".to_owned(),
            }
        })
    }
}

impl Val for Facts {
    fn get_type(&self) -> &Type {
        &FACTS
    }

    fn cel_type() -> &'static Type {
        &FACTS
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Facts {}

impl Container for Facts {
    fn contains(&self, value: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(self.entries.contains_key(&Self::name(value)?))
    }
}

impl Indexer for Facts {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let name = Self::name(index)?;
        match self.entries.get(&name) {
            Some(fact) => Ok(CowVal::Borrowed(&*fact.value)),
            None if self.missing_is_empty => Ok(CowVal::owned(Self::default())),
            None => Err(ExecutionError::no_such_key(&name)),
        }
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(index).map(CowVal::into_owned)
    }
}

/// What counts them, as with every map.
fn size(facts: &Facts) -> CelInt {
    Sizer::size(facts)
}

/// Make the functions known.
pub(super) fn declare(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_overload!(env, fn size: (Facts) -> CelInt)?;
    cel::add_member_overload!(env, fn size: (Facts) -> CelInt)
}

impl Sizer for Facts {
    fn size(&self) -> CelInt {
        i64::try_from(self.entries.len()).unwrap_or(i64::MAX).into()
    }
}

/// Goes through the names, as CEL does with every map.
impl Iterable for Facts {
    fn iter<'b, 'v>(&'b self) -> Box<dyn traits::Iterator<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        Box::new(Names(self.entries.values()))
    }
}

struct Names<'b>(std::collections::btree_map::Values<'b, String, Fact>);

impl<'b, 'v> traits::Iterator<'b, 'v> for Names<'b> {
    fn next(&mut self) -> Option<&'b (dyn Val + 'v)> {
        self.0.next().map(|fact| &fact.name as &dyn Val)
    }
}
