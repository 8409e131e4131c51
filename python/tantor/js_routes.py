"""The routes of `tantor.flask.js_blueprint()`: the JavaScript client, served by the application. Needs Flask."""

import hashlib
import importlib.resources
import json
from typing import TYPE_CHECKING

from flask import Blueprint, Response, abort, request, url_for
from markupsafe import Markup

if TYPE_CHECKING:
    from flask.sansio.blueprints import BlueprintSetupState

_TYPES = {"tantor.js": "text/javascript", "tantor.d.ts": "application/typescript"}
_YEAR = 365 * 24 * 3600


def make_js_blueprint(name: str, url_prefix: str | None) -> Blueprint:
    """A new blueprint; see `tantor.flask.js_blueprint`."""
    folder = importlib.resources.files("tantor") / "js"
    files = {file: (folder / file).read_bytes() for file in _TYPES}
    current = hashlib.sha256(b"".join(files.values())).hexdigest()[:12]
    blueprint = Blueprint(name, __name__, url_prefix=url_prefix)

    @blueprint.get("/<version>/<file>")
    def client(version: str, file: str) -> Response:
        if file not in files:
            abort(404)
        response = Response(files[file], mimetype=_TYPES[file])
        response.set_etag(current)
        if version == current:
            response.cache_control.public = True
            response.cache_control.max_age = _YEAR
            response.cache_control.immutable = True
        else:  # a page from before an upgrade: the current client is better than none, but not under this URL for good
            response.cache_control.no_cache = True
        response.make_conditional(request)
        return response

    @blueprint.record
    def add_template_functions(state: "BlueprintSetupState") -> None:
        endpoint = f"{state.name_prefix}.{state.name}.{client.__name__}".lstrip(".")

        def tantor_js_url() -> str:
            """The URL of `tantor.js`, with its version."""
            return url_for(endpoint, version=current, file="tantor.js")

        def tantor_importmap(nonce: str | None = None) -> Markup:
            """An import map, by which every module of the page can `import … from "tantor"`."""
            # `<` is the only character of JSON that could end a script element
            imports = json.dumps({"imports": {"tantor": tantor_js_url()}}).replace("<", "\\u003c")
            attribute = Markup(' nonce="{}"').format(nonce) if nonce else Markup("")
            return Markup('<script type="importmap"{}>{}</script>').format(attribute, Markup(imports))

        state.app.add_template_global(tantor_js_url)
        state.app.add_template_global(tantor_importmap)

    return blueprint
