"""Content credentials (C2PA): a signed statement inside a file that a model made it.

The key and the certificate are the user's; nothing of the kind is shipped. Signing comes last:
whatever changes the file afterwards breaks the signature.

References:
    C2PA specification 2.2, https://spec.c2pa.org, sections 14.5 (certificates) and 18 (actions);
    IPTC digital source type, https://cv.iptc.org/newscodes/digitalsourcetype/.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pixeldance import __version__
from pixeldance.errors import DataError, InputError
from pixeldance.video import read_recipe
from pixeldance.video.files import check_output_path, new_files
from pixeldance.video.read import read_comment
from pixeldance.video.schema import printable

__all__ = ["SIGNABLE", "SOURCE_TYPE", "Credentials", "read_credentials", "sign_clip"]

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SIGNABLE: Mapping[str, str] = {
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
"""Endings of files that can be signed, and their media types."""

MAX_PEM_BYTES = 64 * 1024
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
_FILM_SCHEMA = "pixeldance.story"
_INTACT_STATES = ("Valid", "Trusted")


class Credentials(NamedTuple):
    """What the content credentials of a file say. Texts are of unknown origin."""

    state: str
    """``Trusted``, ``Valid`` (intact, but nobody vouches for the signer) or ``Invalid``."""
    signer: str
    """Whom the certificate names."""
    source_types: list[str]
    """IPTC digital source types of its actions."""
    actions: list[str]
    """What was done, such as ``c2pa.created``."""
    problems: list[str]
    """What the check found, as codes of the specification."""

    @property
    def is_intact(self) -> bool:
        """Whether nothing has been changed since it was signed."""
        return self.state in _INTACT_STATES

    def summary(self) -> str:
        """The same as lines for a person."""
        kinds = [source.rpartition("/")[2] for source in self.source_types]
        lines = [
            f"state     {self.state}",
            f"signer    {self.signer}",
            f"source    {', '.join(kinds) or 'not said'}",
            f"actions   {', '.join(self.actions)}",
            f"problems  {', '.join(self.problems) or 'none'}",
        ]
        return "\n".join(printable(line) for line in lines)


def sign_clip(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    certificate: str | os.PathLike[str],
    key: str | os.PathLike[str],
    overwrite: bool = False,
) -> Path:
    """Write a signed copy of a clip, complete or not at all. Nothing is sent anywhere.

    Args:
        path: A clip or a film that holds its recipe: only what this package has made is called so.
        output: Where the signed copy goes, with the same ending.
        certificate: PEM file with the signer's certificate, then those above it.
        key: PEM file with its private key, without a password.
        overwrite: Whether a file that is already there may be replaced.

    Returns:
        The path of the copy.

    Raises:
        DataError: If the package c2pa-python is not installed.
        InputError: If the file cannot be signed, the key or the certificate cannot be used, or a
            file would be overwritten.
    """
    path, output = Path(path), Path(output)
    suffix = path.suffix.lower()
    if suffix not in SIGNABLE:
        what = "WebM files cannot" if suffix == ".webm" else f"'{path}' cannot"
        raise InputError(
            f"{what} carry C2PA credentials. Write {', '.join(SIGNABLE)} and sign that."
        )
    check_output_path(output, suffix=suffix, overwrite=overwrite)
    if output.resolve() == path.resolve():
        raise InputError(f"'{output}' is the clip itself. Choose another output name.")
    c2pa = _load_c2pa()
    manifest = _manifest(_recipe_of(path), title=output.name)
    certificates, private_key = _read_pem(certificate), _read_pem(key)
    algorithm = _algorithm(private_key, key)
    with new_files(output, overwrite=overwrite) as (temporary,):
        try:
            info = c2pa.C2paSignerInfo(algorithm, certificates, private_key, None)
            with (
                c2pa.Signer.from_info(info) as signer,
                c2pa.Builder(manifest) as builder,
                path.open("rb") as source,
                temporary.open("w+b") as target,
            ):
                builder.sign(signer, SIGNABLE[suffix], source, target)
        except c2pa.C2paError as error:
            raise InputError(
                f"'{path}' could not be signed with '{certificate}': {error}. The certificate must "
                "be for signing (key usage digitalSignature, extended key usage emailProtection or "
                "documentSigning), must belong to the key and be followed by those above it."
            ) from error
    return output


def read_credentials(path: str | os.PathLike[str]) -> Credentials | None:
    """Check the content credentials of a file.

    Args:
        path: The file; it is not trusted.

    Returns:
        What they say, or None if there are none.

    Raises:
        DataError: If the package c2pa-python is not installed.
        InputError: If the file is missing or of a kind that cannot have any.
    """
    path = Path(path)
    c2pa = _load_c2pa()
    if not path.is_file():
        raise InputError(f"'{path}' does not exist. Check the name.")
    suffix = path.suffix.lower()
    if suffix not in SIGNABLE:
        raise InputError(
            f"'{path}' cannot carry C2PA credentials; {', '.join(SIGNABLE)} can. Give one of them."
        )
    try:
        # A file of unknown origin must not make us fetch anything.
        with (
            c2pa.Settings.from_dict(_OFFLINE) as settings,
            c2pa.Context(settings=settings) as context,
            path.open("rb") as file,
        ):
            reader = c2pa.Reader.try_create(SIGNABLE[suffix], file, context=context)
            if reader is None:
                return None
            with reader:
                found = json.loads(reader.json())
    except c2pa.C2paError as error:
        raise InputError(f"The credentials in '{path}' cannot be read: {error}.") from error
    return _credentials(found)


def _load_c2pa() -> ModuleType:
    try:
        import c2pa
    except ImportError as error:
        raise DataError(
            "Signing needs c2pa-python. Install it: pip install 'pixeldance[c2pa]'."
        ) from error
    module: ModuleType = c2pa
    return module


def _recipe_of(path: Path) -> Mapping[str, Any]:
    """The recipe of a clip; of a film, which has one of another schema, nothing but that.

    Raises:
        InputError: If there is neither.
    """
    try:
        return read_recipe(path)
    except InputError:
        try:
            found = json.loads(read_comment(path) or "")
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and found.get("schema") == _FILM_SCHEMA:
            return {}
        raise


def _manifest(recipe: Mapping[str, Any], *, title: str) -> dict[str, Any]:
    agent = {"name": "pixeldance", "version": __version__}
    actions: list[dict[str, Any]] = [
        {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": agent}
    ]
    for step in recipe.get("finishing", []):
        if step["fps_factor"] > 1:
            description = f"Frame rate x{step['fps_factor']}, frames in between by RIFE"
            actions.append(_edit("c2pa.edited", description, agent))
        if step["upscale"] > 1:
            description = f"Enlarged x{step['upscale']} by Real-ESRGAN"
            actions.append(_edit("c2pa.resized", description, agent))
    return {
        "claim_generator_info": [agent],
        "title": title,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


def _edit(action: str, description: str, agent: Mapping[str, str]) -> dict[str, Any]:
    return {
        "action": action,
        "description": description,
        "digitalSourceType": SOURCE_TYPE,
        "softwareAgent": agent,
    }


def _read_pem(path: str | os.PathLike[str]) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_PEM_BYTES)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}). Check the name.") from error
    if b"-----BEGIN " not in data:
        raise InputError(f"'{path}' is no PEM file. Give one that starts with -----BEGIN.")
    return data


def _algorithm(private_key: bytes, path: str | os.PathLike[str]) -> bytes:
    """C2PA's name of the signature that goes with a key."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(private_key, password=None)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"'{path}' holds no private key that can be used: it is damaged or has a password. "
            "Give one without a password."
        ) from error
    if isinstance(key, ec.EllipticCurvePrivateKey):
        names = {256: b"es256", 384: b"es384", 521: b"es512"}
        if key.key_size in names:
            return names[key.key_size]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return b"ps256"
    raise InputError(
        f"The key in '{path}' is of a kind that C2PA does not take. Use an elliptic curve (P-256, "
        "P-384, P-521), Ed25519, or RSA of at least 2048 bits."
    )


def _credentials(found: Mapping[str, Any]) -> Credentials:
    manifest = found.get("manifests", {}).get(found.get("active_manifest"), {})
    actions = [
        action
        for assertion in manifest.get("assertions", [])
        if assertion.get("label", "").startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", [])
    ]
    signature = manifest.get("signature_info", {})
    names = [signature.get(key) for key in ("common_name", "issuer")]
    return Credentials(
        state=str(found.get("validation_state", "Invalid")),
        signer=", ".join(dict.fromkeys(str(name) for name in names if name)) or "not named",
        source_types=sorted(
            {str(a["digitalSourceType"]) for a in actions if "digitalSourceType" in a}
        ),
        actions=[str(action.get("action")) for action in actions],
        problems=sorted({str(s.get("code")) for s in found.get("validation_status", [])}),
    )
