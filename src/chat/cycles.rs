//! `cycler` and `joiner`, Jinja's functions that remember what they gave.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::environment::invalid;

/// Values that are given one after the other, and again from the first.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    place: AtomicUsize,
}

/// `cycler(a, b, ..)`.
pub(super) fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    if items.is_empty() {
        return Err(invalid("cycler takes at least one value"));
    }
    if items.iter().any(Value::is_kwargs) {
        return Err(invalid("cycler takes no names"));
    }
    Ok(Value::from_object(Cycler { items: items.to_vec(), place: AtomicUsize::new(0) }))
}

/// `joiner(sep)`: nothing at the first call, `sep` at all others.
pub(super) fn joiner(sep: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let sep = sep.or(kwargs.get::<Option<Value>>("sep")?);
    kwargs.assert_all_used()?;
    Ok(minijinja_contrib::globals::joiner(sep))
}

impl Cycler {
    fn current(&self) -> Value {
        self.items[self.place.load(Ordering::Relaxed) % self.items.len()].clone()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        let () = from_args(args)?;
        match method {
            "next" => {
                let value = self.current();
                self.place.fetch_add(1, Ordering::Relaxed);
                Ok(value)
            }
            "reset" => {
                self.place.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}
