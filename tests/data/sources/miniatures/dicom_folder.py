"""A small hospital's export: DICOM files of several kinds in folders of studies, with a DICOMDIR, a report, and a table of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

DX = "1.2.840.10008.5.1.4.1.1.1.1"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"


def write_file(path: Path, pixels: np.ndarray | None, uid: str, *, compress: bool = False, **tags: Any) -> None:
    """One file; tags that are None are left out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if tags.pop("implicit", False) else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DX if pixels is not None else REPORT
    meta.MediaStorageSOPInstanceUID = uid
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, uid
    for name, value in tags.items():
        if value is not None:
            setattr(data, name, value)
    if pixels is not None:
        if pixels.ndim == 3:
            data.NumberOfFrames = len(pixels)
        data.Rows, data.Columns = pixels.shape[-2:]
        data.SamplesPerPixel = 1
        data.PhotometricInterpretation = tags.get("PhotometricInterpretation", "MONOCHROME2")
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelData = pixels.astype("<u2").tobytes()
        data["PixelData"].VR = "OW"
    if compress:
        data.compress(RLELossless, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def write(root: Path, *, patients: int = 24, seed: int = 0, key: str = "SOPInstanceUID") -> None:
    """One study a patient, of two films for every third: patient 1 has no sex, 2 sex O, 3 no age but a birth date, 4 an age in months,
    5 no PatientID, 6 is 090Y; film 0 of patient 7 has two windows, patient 8 burned-in text, patient 9 no row in the table."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        ill = patient // 2 % 2
        for film in range(2 if patient % 3 == 0 else 1):
            x, y = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 48))
            pixels = 1500 + 900 * ill * np.exp(-4 * (x**2 + y**2)) + rng.normal(0, 80, x.shape)
            dark = patient % 4 == 1
            windows = ([2000, 1000], [2000, 1000]) if (patient, film) == (7, 0) else (2048, 4096)
            uid, accession = f"1.2.826.0.1.{patient + 1}.{film + 1}", f"ACC{patient:04d}"
            name = f"STUDY{patient:02d}/IM{film:04d}" + (".dcm" if patient % 2 else "")
            write_file(
                root / "export" / name, np.clip(4095 - pixels if dark else pixels, 0, 4095), uid, compress=patient % 5 == 0,
                implicit=patient % 5 == 2, PhotometricInterpretation="MONOCHROME1" if dark else "MONOCHROME2",
                PatientName="Doe^Jane", PatientID=None if patient == 5 else f"MRN{70000 + patient}",
                PatientBirthDate="19610704", StudyDate="20210703", AccessionNumber=accession, StudyInstanceUID=f"1.2.826.0.2.{patient + 1}",
                PatientSex={1: None, 2: "O"}.get(patient, "FM"[patient % 2]),
                PatientAge={3: None, 4: "018M", 6: "090Y"}.get(patient, f"{30 + 3 * patient % 60:03d}Y"),
                PatientIdentityRemoved="YES" if patient % 2 else None, BurnedInAnnotation="YES" if patient == 8 else "NO",
                Modality="DX", ViewPosition=("PA", "LL")[film], Manufacturer=("Acme", "Umbrella")[patient // 3 % 2],
                WindowCenter=windows[0], WindowWidth=windows[1],
            )
            rows.append({
                "SOPInstanceUID": uid, "AccessionNumber": accession, "PatientID": f"MRN{70000 + patient}", "file": f"export/{name}",
                "patient": patient, "effusion": ill, "ward": ("A", "B")[patient % 2], "PatientName": "Doe^Jane",
            })
    table = pd.DataFrame(rows)
    table = table[table["patient"] != 9].drop(columns="patient")
    others = [name for name in ("SOPInstanceUID", "AccessionNumber", "PatientID", "file") if name != key]
    table.drop(columns=others).drop_duplicates(key).to_csv(root / "labels.csv", index=False)
    write_file(root / "export/STUDY00/SR0001", None, "1.2.826.0.3.1", PatientID="MRN70000")
    (root / "export/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (root / "export/broken.dcm").write_bytes(b"not DICOM at all")
    (root / "export/README.txt").write_text("exported")
