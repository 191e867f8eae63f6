"""The test lab: the real ComfyUI on a CPU, with tiny but real models, and the tools to talk to it.

Nothing of ComfyUI is imitated in this project's tests. The lab installs the real program into one folder
(`paths.LAB`), builds small models of real architectures from ComfyUI's own classes (`models`), writes
example adapter files for them (`adapters`), starts the server with this pack linked into `custom_nodes`
(`server`), runs workflows over its HTTP interface (`client`, `workflows`) and through its web page
(`browser`, `chromium`). `demo` and `serve` are the two commands made of these parts. `install` and
`chromium` need only the standard library, because they run before anything is installed; everything else
runs in the lab's own virtual environment.
"""
