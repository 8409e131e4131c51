//! Python data to JSON bytes, in one pass.
//!
//! Natively: dict, list, tuple, str, int, float, bool, None and their subclasses. As the standard library's `json`
//! would need a default for: dataclasses (an object of their fields), enums (their value), datetime, date and time
//! (ISO 8601), UUID and Decimal (strings). Anything else goes to the caller's `default`.

use super::arguments::type_name;
use super::errors::data_error;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple, PyType};
use std::fmt::Write as _;

/// Containers within containers.
const MAX_DEPTH: usize = 128;

/// Appends `value` as JSON to `out`.
///
/// `root` names the value in errors. Errors: `DataError` that names the place in the data; an error of `default`.
pub fn write(
    out: &mut Vec<u8>,
    value: &Bound<'_, PyAny>,
    default: Option<&Bound<'_, PyAny>>,
    root: &str,
) -> PyResult<()> {
    let mut writer = Writer {
        out,
        default,
        containers: Vec::new(),
    };
    writer
        .value(value)
        .map_err(|failure| failure.into_error(root))
}

struct Writer<'a, 'py> {
    out: &'a mut Vec<u8>,
    default: Option<&'a Bound<'py, PyAny>>,
    /// The addresses of the containers around the current value. A container that contains itself is among them.
    containers: Vec<usize>,
}

/// The problem and its place, as the steps from the value outwards.
struct Failure(Box<FailureParts>);

struct FailureParts {
    problem: Problem,
    steps: Vec<Step>,
}

enum Problem {
    /// A value that JSON cannot hold.
    Data(String),
    /// A dict changed while it was read; this is the error that `json` raises then.
    Changed,
    Raised(PyErr),
}

enum Step {
    Key(String),
    Index(usize),
}

type Written = Result<(), Failure>;

impl<'py> Writer<'_, 'py> {
    fn value(&mut self, value: &Bound<'py, PyAny>) -> Written {
        if let Ok(text) = value.cast::<PyString>() {
            self.text(text)
        } else if value.is_none() {
            self.out.extend_from_slice(b"null");
            Ok(())
        } else if let Ok(value) = value.cast::<PyBool>() {
            self.out
                .extend_from_slice(if value.is_true() { b"true" } else { b"false" });
            Ok(())
        } else if let Ok(value) = value.cast::<PyInt>() {
            self.integer(value)
        } else if let Ok(value) = value.cast::<PyFloat>() {
            self.float(value.value())
        } else if let Ok(dict) = value.cast::<PyDict>() {
            self.within(value, |writer| writer.dict(dict))
        } else if let Ok(list) = value.cast::<PyList>() {
            self.within(value, |writer| writer.items(list.iter()))
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            self.within(value, |writer| writer.items(tuple.iter()))
        } else {
            self.other(value)
        }
    }

    fn text(&mut self, text: &Bound<'py, PyString>) -> Written {
        let text = text
            .to_str()
            .map_err(|_| data("the string has half a surrogate pair, which is no character"))?;
        crate::wire::messages::write_text(self.out, text);
        Ok(())
    }

    fn integer(&mut self, value: &Bound<'py, PyInt>) -> Written {
        use std::io::Write as _;
        if let Ok(small) = value.extract::<i64>() {
            // writing to a Vec does not fail
            let _ = write!(self.out, "{small}");
            return Ok(());
        }
        let digits = integer_digits(value).map_err(|error| too_long(value.py(), error))?;
        self.out.extend_from_slice(digits.as_bytes());
        Ok(())
    }

    fn float(&mut self, value: f64) -> Written {
        if !value.is_finite() {
            let name = if value.is_nan() { "NaN" } else { "infinity" };
            return Err(data(format!("{name} is not a number in JSON")));
        }
        // writing to a Vec does not fail
        let _ = serde_json::to_writer(&mut *self.out, &value);
        Ok(())
    }

    fn dict(&mut self, dict: &Bound<'py, PyDict>) -> Written {
        self.out.push(b'{');
        let mut is_first = true;
        // code of the values may change the dict, and then the iterator panics: so it is asked for no item
        // that the dict might not have
        let len = dict.len();
        let mut items = dict.iter();
        for _ in 0..len {
            if dict.len() != len {
                return Err(Failure::new(Problem::Changed));
            }
            let Some((key, value)) = items.next() else {
                break;
            };
            self.member(&key, &value, &mut is_first)?;
        }
        self.out.push(b'}');
        Ok(())
    }

    fn member(
        &mut self,
        key: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        is_first: &mut bool,
    ) -> Written {
        if !std::mem::replace(is_first, false) {
            self.out.push(b',');
        }
        self.key(key)?;
        self.out.push(b':');
        self.value(value)
            .map_err(|failure| failure.within(Step::Key(key.to_string())))
    }

    /// Keys as the standard library's `json` takes them.
    fn key(&mut self, key: &Bound<'py, PyAny>) -> Written {
        if let Ok(text) = key.cast::<PyString>() {
            return self.text(text);
        }
        let is_number = key.is_instance_of::<PyInt>() || key.is_instance_of::<PyFloat>();
        if key.is_none() || key.is_instance_of::<PyBool>() || is_number {
            self.out.push(b'"');
            self.value(key)?;
            self.out.push(b'"');
            return Ok(());
        }
        Err(data(format!(
            "a key is of type {}; JSON's keys are strings",
            type_name(key)
        )))
    }

    fn items(&mut self, items: impl Iterator<Item = Bound<'py, PyAny>>) -> Written {
        self.out.push(b'[');
        for (index, item) in items.enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.value(&item)
                .map_err(|failure| failure.within(Step::Index(index)))?;
        }
        self.out.push(b']');
        Ok(())
    }

    fn other(&mut self, value: &Bound<'py, PyAny>) -> Written {
        let types = Types::get(value.py()).map_err(raised)?;
        let is = |class: &Py<PyType>| value.is_instance(class.bind(value.py())).unwrap_or(false);
        if types.isoformat.iter().any(is) {
            let text = value.call_method0("isoformat").map_err(raised)?;
            self.within(value, |writer| writer.value(&text))
        } else if types.text.iter().any(is) {
            let text = value.str().map_err(raised)?;
            self.text(&text)
        } else if is(&types.enumeration) {
            let inner = value.getattr("value").map_err(raised)?;
            self.within(value, |writer| writer.value(&inner))
        } else if value
            .get_type()
            .hasattr("__dataclass_fields__")
            .unwrap_or(false)
        {
            self.within(value, |writer| writer.dataclass(value, types))
        } else if let Some(default) = self.default {
            let replaced = default.call1((value,)).map_err(raised)?;
            self.within(value, |writer| writer.value(&replaced))
        } else {
            Err(data(format!(
                "a value of type {} cannot be held in JSON",
                type_name(value)
            )))
        }
    }

    fn dataclass(&mut self, value: &Bound<'py, PyAny>, types: &Types) -> Written {
        let fields = types
            .dataclass_fields
            .bind(value.py())
            .call1((value,))
            .map_err(raised)?;
        self.out.push(b'{');
        let mut is_first = true;
        for field in fields.try_iter().map_err(raised)? {
            let name = field
                .and_then(|field| field.getattr("name"))
                .map_err(raised)?;
            let inner = name
                .cast::<PyString>()
                .map_err(|error| raised(error.into()))
                .and_then(|name| value.getattr(name).map_err(raised))?;
            self.member(&name, &inner, &mut is_first)?;
        }
        self.out.push(b'}');
        Ok(())
    }

    /// Writes one container, one level deeper.
    fn within(
        &mut self,
        container: &Bound<'py, PyAny>,
        write: impl FnOnce(&mut Self) -> Written,
    ) -> Written {
        let address = container.as_ptr() as usize;
        if self.containers.len() >= MAX_DEPTH {
            let problem = if self.containers.contains(&address) {
                "the data contains itself".to_owned()
            } else {
                format!("the data nests more than {MAX_DEPTH} deep")
            };
            return Err(data(problem));
        }
        self.containers.push(address);
        let written = write(self);
        self.containers.pop();
        written
    }
}

impl Failure {
    fn new(problem: Problem) -> Self {
        Self(Box::new(FailureParts {
            problem,
            steps: Vec::new(),
        }))
    }

    fn within(mut self, step: Step) -> Self {
        self.0.steps.push(step);
        self
    }

    fn into_error(self, root: &str) -> PyErr {
        let FailureParts { problem, steps } = *self.0;
        let mut location = root.to_owned();
        for step in steps.iter().rev().take(MAX_SHOWN_STEPS) {
            match step {
                // writing to a String does not fail
                Step::Index(index) => drop(write!(location, "[{index}]")),
                Step::Key(key) if is_identifier(key) => drop(write!(location, ".{key}")),
                Step::Key(key) => drop(write!(location, "[{key:?}]")),
            }
        }
        if steps.len() > MAX_SHOWN_STEPS {
            location.push('…');
        }
        match problem {
            Problem::Raised(error) => error,
            Problem::Data(problem) => data_error(format!("{location}: {problem}")),
            Problem::Changed => PyRuntimeError::new_err(format!(
                "{location}: the dict changed size while it was read"
            )),
        }
    }
}

/// The most steps of a place that an error shows.
const MAX_SHOWN_STEPS: usize = 16;

fn is_identifier(key: &str) -> bool {
    !key.is_empty()
        && !key.starts_with(|first: char| first.is_ascii_digit())
        && key
            .chars()
            .all(|character| character == '_' || character.is_alphanumeric())
}

fn data(problem: impl Into<String>) -> Failure {
    Failure::new(Problem::Data(problem.into()))
}

fn raised(error: PyErr) -> Failure {
    Failure::new(Problem::Raised(error))
}

/// The interpreter limits how many digits it writes (`sys.set_int_max_str_digits`).
fn too_long(py: Python<'_>, error: PyErr) -> Failure {
    if error.is_instance_of::<PyValueError>(py) {
        data(error.value(py).to_string())
    } else {
        raised(error)
    }
}

fn integer_digits(value: &Bound<'_, PyInt>) -> PyResult<String> {
    // of the class `int`, because a subclass may return other text
    value
        .py()
        .get_type::<PyInt>()
        .call_method1("__repr__", (value,))?
        .extract()
}

/// The types of the standard library that are converted here.
struct Types {
    isoformat: [Py<PyType>; 3],
    text: [Py<PyType>; 2],
    enumeration: Py<PyType>,
    dataclass_fields: Py<PyAny>,
}

impl Types {
    fn get(py: Python<'_>) -> PyResult<&Self> {
        static TYPES: PyOnceLock<Types> = PyOnceLock::new();
        TYPES.get_or_try_init(py, || {
            let class = |module: &str, name: &str| -> PyResult<Py<PyType>> {
                Ok(py
                    .import(module)?
                    .getattr(name)?
                    .cast_into::<PyType>()?
                    .unbind())
            };
            Ok(Types {
                isoformat: [
                    class("datetime", "datetime")?,
                    class("datetime", "date")?,
                    class("datetime", "time")?,
                ],
                text: [class("uuid", "UUID")?, class("decimal", "Decimal")?],
                enumeration: class("enum", "Enum")?,
                dataclass_fields: py.import("dataclasses")?.getattr("fields")?.unbind(),
            })
        })
    }
}
