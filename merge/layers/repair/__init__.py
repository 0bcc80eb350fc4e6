"""Repair of a model whose layers were removed: refitted seams, fitted layers, distillation."""
