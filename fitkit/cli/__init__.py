"""Commands of `fitkit`: read arguments, call one function, print. One file for each command."""
