//! A module's parameters, from the modules JSON of the operator.

use prost::Message;

/// `mesos.Parameters`.
#[derive(Message)]
struct Parameters {
    #[prost(message, repeated, tag = "1")]
    parameter: Vec<Parameter>,
}

/// `mesos.Parameter`.
#[derive(Message)]
struct Parameter {
    #[prost(string, required, tag = "1")]
    key: String,
    #[prost(string, required, tag = "2")]
    value: String,
}

/// Key and value of each, in the operator's order; a key may come twice.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<(String, String)>, String> {
    let parameters =
        Parameters::decode(bytes).map_err(|error| format!("the module's parameters are broken: {error}"))?;
    Ok(parameters.parameter.into_iter().map(|parameter| (parameter.key, parameter.value)).collect())
}
