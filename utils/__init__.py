"""Building blocks shared by the CAA scripts; imports go from the scripts down to here, never back."""
